// An OpenID provider for the tests of tunnelmux-api: PKCE enforced, a public and a confidential
// client, refresh tokens that rotate, back-channel logout. Everybody who names themself is let in.
// argv: JSON {base}. Tells what happens in lines of JSON.
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';
import { Provider } from 'oidc-provider';

const { base } = JSON.parse(process.argv[2]);
console.info = console.error; // the provider's own remarks
const tell = (event, more = {}) => console.log(JSON.stringify({ event, ...more }));

const client = {
  redirect_uris: [`${base}/api/auth/callback`],
  post_logout_redirect_uris: [`${base}/`],
  backchannel_logout_uri: `${base}/api/auth/backchannel-logout`,
  backchannel_logout_session_required: true,
  grant_types: ['authorization_code', 'refresh_token'],
  response_types: ['code'],
};

const newKeys = () => {
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  return { keys: [{ ...privateKey.export({ format: 'jwk' }), use: 'sig', kid: randomUUID() }] };
};

const server = createServer();
// By default Node closes a connection that is idle for 5 s, when httpx may be about to use it again.
server.keepAliveTimeout = 0;

// A provider that has just started: with keys of its own, and remembering nobody.
const start = () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    jwks: newKeys(),
    clients: [
      { client_id: 'confidential', client_secret: 'the-secret-of-the-confidential-client', ...client },
      { client_id: 'public', token_endpoint_auth_method: 'none', ...client },
    ],
    pkce: { required: () => true },
    scopes: ['openid', 'profile', 'email', 'offline_access'],
    claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name', 'groups'] },
    conformIdTokenClaims: false,
    rotateRefreshToken: true,
    issueRefreshToken: async () => true,
    ttl: { AccessToken: 3600 },
    cookies: { keys: ['of-the-tests'] },
    // The provider refuses calls to loopback addresses by itself; here everything is on loopback.
    fetch: (url, options) => {
      delete options.dispatcher;
      return globalThis.fetch(url, options);
    },
    features: {
      devInteractions: { enabled: true },
      revocation: { enabled: true },
      backchannelLogout: { enabled: true },
    },
    findAccount: async (_ctx, id) => ({
      accountId: id,
      claims: async () => ({
        sub: id,
        name: `Name of ${id}`,
        email: `${id}@example.com`,
        email_verified: true,
        groups: [],
      }),
    }),
  });
  provider.on('grant.success', (ctx) => {
    const sent = Object.entries(ctx.oidc.params).filter(([, value]) => value !== undefined);
    tell('grant', {
      type: ctx.oidc.params.grant_type,
      fields: sent.map(([name]) => name),
      authorization: 'authorization' in ctx.headers,
    });
  });
  provider.on('grant.error', (_ctx, error) => tell('grant refused', { error: error.error }));
  provider.on('backchannel.success', () => tell('logout told'));
  provider.on('backchannel.error', (_ctx, error) => tell('logout not told', { error: error.message }));
  server.removeAllListeners('request');
  server.on('request', provider.callback());
  return issuer;
};

server.listen(0, '127.0.0.1', () => tell('listening', { issuer: start() }));

// {"restart": true} has the provider start anew.
createInterface({ input: process.stdin }).on('line', (line) => {
  const wanted = JSON.parse(line);
  if (wanted.restart) start();
  tell('done');
});
