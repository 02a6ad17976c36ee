// A main server as the relay service's specification describes it, on npm's socket.io: of version 4,
// or with the option `version: 2`, of that.
//
// Options come as JSON in the first argument. Commands come as lines of JSON on the standard input,
// what happens goes as lines of JSON to the standard output. The end of the input ends it.
'use strict';
const { createServer } = require('http');
const { createInterface } = require('readline');

const options = JSON.parse(process.argv[2] || '{}');
const isOld = options.version === 2;
const Server = isOld ? require('socket.io-2') : require('socket.io').Server;
const tell = (event, more) => process.stdout.write(JSON.stringify({ event, ...more }) + '\n');

let acknowledges = options.acknowledges !== false;
const http = createServer();
const io = new Server(http, {
  pingInterval: options.pingInterval || 25000,
  pingTimeout: options.pingTimeout || 20000,
  transports: options.transports || ['polling', 'websocket'],
  maxHttpBufferSize: options.maxHttpBufferSize || 1e6,
  path: options.path || '/socket.io/',
});
const proxies = io.of('/proxy');
const sockets = () => (isOld ? Object.values(proxies.connected) : [...proxies.sockets.values()]);

proxies.use((socket, next) => {
  const { proxyId, apiKey } = socket.handshake.query;
  const known = proxyId === options.proxyId && apiKey === options.apiKey;
  if (!known) tell('refused', { proxyId });
  next(known ? undefined : new Error('unauthorized'));
});

proxies.on('connection', (socket) => {
  const engine = socket.conn;
  const { auth, query } = socket.handshake;
  tell('connected', { proxyId: query.proxyId, auth, transport: engine.transport.name });
  engine.once('upgrade', () => tell('upgraded', { transport: engine.transport.name }));
  engine.on('heartbeat', () => tell('heartbeat')); // a ping or pong of the client's came
  socket.on('command_result', (data) => {
    tell('result', { data });
    if (acknowledges) socket.emit('command_result_received', { success: true });
  });
  socket.on('disconnect', (reason) => tell('disconnected', { reason }));
  socket.on('binary', (...args) => socket.emit('binary', ...args));
  socket.on('ask', (question, answer) => answer({ question, bytes: Buffer.from('ok') }));
});

const commands = {
  execute: ({ data }) => proxies.emit('execute_command', data),
  emit: ({ name, args }) => proxies.emit(name, ...args),
  call: async ({ name, args }) =>
    tell('answers', { answers: await proxies.timeout(5000).emitWithAck(name, ...args) }),
  acknowledge: ({ on }) => { acknowledges = on; },
  leave: () => sockets().forEach((socket) => socket.disconnect(false)),
  // As a crash does it, with no goodbye; for WebSockets only.
  cut: () => sockets().forEach((socket) => socket.conn.transport.socket.terminate()),
};
createInterface({ input: process.stdin })
  .on('line', (line) => { const command = JSON.parse(line); commands[command.do](command); })
  .on('close', () => process.exit());

http.listen(options.port || 0, '127.0.0.1', () => tell('listening', { port: http.address().port }));
