// The specification's sample agent for Node.js, on npm's socket.io-client. What it leaves open,
// executeCommand, runs the command on this machine.
'use strict';
const { exec } = require('child_process');
// npm's version 2 beside the one of today: CLIENT_PACKAGE chooses.
const library = require(process.env.CLIENT_PACKAGE || 'socket.io-client');
const io = library.io || library;

const config = {
  serverUrl: process.env.SERVER_URL || 'http://localhost:3000',
  proxyId: process.env.PROXY_ID || 'proxy-1',
  apiKey: process.env.API_KEY || 'your-api-key',
};

const socket = io(`${config.serverUrl}${process.env.NAMESPACE || '/proxy'}`, {
  query: {
    proxyId: config.proxyId,
    apiKey: config.apiKey,
  },
  reconnection: true,
  ...JSON.parse(process.env.CLIENT_OPTIONS || '{}'),
});

socket.on('execute_command', async (data) => {
  try {
    const result = await executeCommand(data);
    socket.emit('command_result', {
      commandId: data.commandId,
      result,
    });
  } catch (error) {
    socket.emit('command_result', {
      commandId: data.commandId,
      result: {
        stdout: '',
        stderr: error.message,
        exitCode: 1,
      },
    });
  }
});

async function executeCommand(data) {
  if (data.command === 'throw') throw new Error('it threw');
  return new Promise((resolve) => {
    exec(data.command, { timeout: data.timeout, maxBuffer: 64e6 }, (error, stdout, stderr) => {
      resolve({ stdout, stderr, exitCode: error ? error.code || 1 : 0 });
    });
  });
}

// For the test that looks on.
const tell = (event, more) => process.stdout.write(JSON.stringify({ event, ...more }) + '\n');
socket.on('connect', () => {
  tell('connected', { transport: socket.io.engine.transport.name });
  socket.io.engine.once('upgrade', (transport) => tell('upgraded', { transport: transport.name }));
});
socket.on('error', (message) => tell('refused', { message })); // as version 2 says it
socket.on('connect_error', (error) => tell('refused', { message: error.message }));
socket.on('disconnect', (reason) => tell('disconnected', { reason }));
socket.on('command_result_received', (data) => tell('received', { data }));
