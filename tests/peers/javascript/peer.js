// The JavaScript peer of the interoperability tests: @chainsafe/libp2p-yamux behind the command
// language of ../README.md, with its streams on a TCP socket or a WebSocket instead of a libp2p
// connection. One process holds one session.

import { createHash } from 'node:crypto'
import net from 'node:net'
import readline from 'node:readline'

if (Promise.withResolvers === undefined) {
  // The library asks for Node 22; this is all that Node 20 lacks.
  Promise.withResolvers = () => {
    const made = {}
    made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }))
    return made
  }
}
const { yamux } = await import('@chainsafe/libp2p-yamux')
const { defaultLogger } = await import('@libp2p/logger')
const { AbstractMultiaddrConnection } = await import('@libp2p/utils')
const { WebSocket, WebSocketServer } = await import('ws')

const PERIOD = 251
const CHUNK = 65_536
const BLOCK = Buffer.from(Array.from({ length: CHUNK + PERIOD }, (_, i) => i % PERIOD))
const HIGH_WATER = 128 * 1024
// The library resets a stream whose unread bytes are more than 4 MiB, and lets windows grow to 16.
const WINDOW = 2 * 1024 * 1024
const ESTABLISHED = 3 // the muxer's StreamState: before it, a pause would swallow the SYN or ACK
const unsupported = () => { throw new Error('unsupported') }
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

// ---------------------------------------------------------------------------------- transports

class TcpConnection extends AbstractMultiaddrConnection {
  constructor (socket, direction) {
    super({ direction, log: defaultLogger().forComponent('peer') })
    this.socket = socket.setNoDelay()
    socket.on('data', (data) => this.onData(data))
    socket.on('drain', () => this.safeDispatchEvent('drain'))
    socket.on('error', (error) => { process.stderr.write(`socket: ${error}\n`) })
    socket.on('close', () => this.onTransportClosed())
  }

  sendData (data) {
    const sentBytes = data.byteLength
    return { sentBytes, canSendMore: this.socket.write(data.subarray()) }
  }

  async sendClose () { await new Promise((resolve) => this.socket.end(resolve)) }
  sendReset () { this.socket.destroy() }
  sendPause () { this.socket.pause() }
  sendResume () { this.socket.resume() }
}

class WebSocketConnection extends AbstractMultiaddrConnection {
  constructor (socket, direction, messages) {
    super({ direction, log: defaultLogger().forComponent('peer') })
    this.socket = socket
    this.nextSize = { bytes: () => 1, random: () => 1 + Math.floor(Math.random() * 20_000) }[messages]
    socket.binaryType = 'nodebuffer'
    socket.on('message', (data, isBinary) => isBinary ? this.onData(data) : socket.close(1003))
    socket.on('error', (error) => { process.stderr.write(`socket: ${error}\n`) })
    socket.on('close', () => this.onTransportClosed())
  }

  sendData (list) {
    const data = list.subarray()
    const sent = () => {
      if (this.socket.bufferedAmount < HIGH_WATER) this.safeDispatchEvent('drain')
    }
    for (let at = 0; at < data.length;) {
      const size = this.nextSize?.() ?? data.length
      this.socket.send(data.subarray(at, at + size), sent)
      at += size
    }
    return { sentBytes: data.length, canSendMore: this.socket.bufferedAmount < 8 * HIGH_WATER }
  }

  async sendClose () { this.socket.close(1000) }
  sendReset () { this.socket.terminate() }
  sendPause () { this.socket.pause() }
  sendResume () { this.socket.resume() }
}

async function listen (transport, messages) {
  let connected
  const connection = new Promise((resolve) => { connected = resolve })
  if (transport === 'tcp') {
    const server = net.createServer((socket) => connected(new TcpConnection(socket, 'inbound')))
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
    return [server.address().port, connection]
  }
  const server = new WebSocketServer({ host: '127.0.0.1', port: 0 })
  await new Promise((resolve) => server.on('listening', resolve))
  server.on('connection', (socket) =>
    connected(new WebSocketConnection(socket, 'inbound', messages)))
  return [server.address().port, connection]
}

async function dial (transport, address, messages) {
  if (transport === 'tcp') {
    const [host, port] = address.split(':')
    const socket = net.connect(Number(port), host)
    await new Promise((resolve, reject) => socket.on('connect', resolve).on('error', reject))
    return new TcpConnection(socket, 'outbound')
  }
  const socket = new WebSocket(`ws://${address}`, { perMessageDeflate: false })
  await new Promise((resolve, reject) => socket.on('open', resolve).on('error', reject))
  return new WebSocketConnection(socket, 'outbound', messages)
}

// ------------------------------------------------------------------------------------- streams

// Reads a stream piece by piece, and stops the peer while nobody does.
class Reader {
  constructor (stream) {
    this.stream = stream
    this.queue = []
    this.queued = 0
    this.finished = false
    this.failure = null
    this.wake = () => {}
    stream.addEventListener('remoteCloseWrite', () => {
      // The end of a session looks the same, so ask who ended the stream.
      this.finished ||= stream.status === 'open'
      this.wake()
    })
    stream.addEventListener('close', (event) => {
      if (event.error != null || !this.finished) {
        this.failure = event.error ?? new Error('the session ended')
      }
      this.wake()
    })
    stream.addEventListener('message', ({ data }) => {
      const bytes = data.subarray()
      this.queue.push(bytes)
      this.queued += bytes.length
      if (this.queued > HIGH_WATER && stream.state === ESTABLISHED) stream.pause()
      this.wake()
    })
  }

  // At least one byte and at most `most`; null at the end.
  async read (most) {
    while (this.queue.length === 0) {
      if (this.failure !== null) throw this.failure
      if (this.finished && this.stream.readBuffer.byteLength === 0) return null
      if (this.stream.readStatus === 'paused') {
        this.stream.resume()
        if (this.queue.length > 0) break
      }
      await new Promise((resolve) => { this.wake = resolve })
    }
    const first = this.queue.shift()
    const taken = first.subarray(0, most)
    if (taken.length < first.length) this.queue.unshift(first.subarray(most))
    this.queued -= taken.length
    return taken
  }
}

async function send (stream, bytes) {
  if (!stream.send(bytes)) await stream.onDrain()
}

async function write (stream, count, chunk, seed) {
  const digest = createHash('sha256')
  for (let at = 0; at < count;) {
    const pieces = []
    let wanted = Math.min(chunk, count - at)
    while (wanted > 0) {
      const start = (seed + at) % PERIOD
      const piece = BLOCK.subarray(start, start + Math.min(wanted, CHUNK))
      pieces.push(piece)
      digest.update(piece)
      at += piece.length
      wanted -= piece.length
    }
    await send(stream, pieces.length === 1 ? pieces[0] : Buffer.concat(pieces))
  }
  return digest.digest('hex')
}

async function read (reader, wanted, rate) {
  const limit = wanted === 'eof' ? Infinity : Number(wanted)
  const digest = createHash('sha256')
  let total = 0
  let end = 'more'
  while (total < limit) {
    let most = Math.min(CHUNK, limit - total)
    if (rate > 0) most = Math.min(most, Math.max(1, Math.floor(rate / 10)))
    let data
    try {
      data = await reader.read(most)
    } catch (error) {
      throw new Error(`after ${total} bytes: ${error.message}`)
    }
    if (data === null) {
      end = 'eof'
      break
    }
    digest.update(data)
    total += data.length
    if (rate > 0) await sleep(1000 * data.length / rate)
  }
  return `bytes=${total} sha256=${digest.digest('hex')} end=${end}`
}

// ---------------------------------------------------------------------------------------- peer

const ready = Promise.withResolvers()
const closed = Promise.withResolvers()
const streams = new Map()
const counts = { accepted: 0, finished: 0, failed: 0, bytes: 0 }
const waiting = [] // streams the other side opened, not accepted yet
let announce = () => {}
let muxer, connection

function begin (made) {
  connection = made
  connection.addEventListener('close', () => closed.resolve())
  muxer = yamux({ streamOptions: { maxStreamWindowSize: WINDOW } })().createStreamMuxer(connection)
  ready.resolve()
}

// The library drops the session when more than ten streams come before anybody listens for them.
let listening = false
function startListening () {
  if (listening) return
  listening = true
  muxer.addEventListener('stream', ({ detail }) => {
    waiting.push([detail, new Reader(detail)])
    announce()
  })
}

async function accept () {
  startListening()
  while (waiting.length === 0) await new Promise((resolve) => { announce = resolve })
  return waiting.shift()
}

async function open () {
  const stream = await muxer.createStream()
  return [stream, new Reader(stream)]
}

async function serve (mode, count) {
  for (;;) {
    const [stream, reader] = await accept()
    counts.accepted++
    treat(stream, reader, mode, count).then(
      () => { counts.finished++ },
      (error) => {
        process.stderr.write(`stream failed: ${error}\n`)
        counts.failed++
      }
    )
  }
}

async function treat (stream, reader, mode, count) {
  if (mode === 'hold') return
  if (mode === 'greet') {
    await write(stream, count, CHUNK, 0)
  } else {
    for (let data; (data = await reader.read(CHUNK)) !== null;) {
      counts.bytes += data.length
      if (mode === 'echo') await send(stream, data)
    }
  }
  await stream.close()
}

async function exchange (total, count, concurrent) {
  let next = 0
  const failures = []
  const worker = async () => {
    while (next < total) {
      const seed = next++
      await exchangeOne(count, seed).catch((error) => failures.push(error))
    }
  }
  await Promise.all(Array.from({ length: concurrent }, worker))
  if (failures.length > 0) {
    throw new Error(`${failures.length} of ${total} streams: ${failures[0].message}`)
  }
  return `streams=${total} bytes=${total * count}`
}

async function exchangeOne (count, seed) {
  const [stream, reader] = await open()
  const sending = async () => {
    const sum = await write(stream, count, CHUNK, seed)
    await stream.close()
    return sum
  }
  const [sum, got] = await Promise.all([sending(), read(reader, 'eof', 0)])
  if (got !== `bytes=${count} sha256=${sum} end=eof`) {
    throw new Error(`echo differs: ${got}, not ${count} bytes ${sum}`)
  }
}

const commands = {
  about: () => 'implementation=js-libp2p-yamux language=javascript',
  listen: async ([transport], { messages }) => {
    const [port, made] = await listen(transport, messages)
    made.then(begin)
    return `port=${port}`
  },
  dial: async ([transport, , address], { messages }) => {
    begin(await dial(transport, address, messages))
  },
  die: () => process.kill(process.pid, 'SIGKILL')
}

const sessionCommands = {
  session: () => {},
  closed: () => closed.promise,
  'close-session': async () => {
    await muxer.close()
    await connection.close()
  },
  ping: async () => `ms=${await muxer.ping()}`,
  goaway: unsupported,
  stats: () => [`streams=${muxer.streams.length}`,
    ...Object.entries(counts).map(([name, count]) => `${name}=${count}`)].join(' '),
  open: async ([name]) => { streams.set(name, await open()) },
  accept: async ([name]) => { streams.set(name, await accept()) },
  serve: ([mode, count]) => {
    serve(mode, Number(count))
  },
  exchange: ([total, count], { concurrent }) =>
    exchange(Number(total), Number(count), Number(concurrent ?? 1)),
  text: () => connection.socket.send?.('text') ?? (connection instanceof TcpConnection && unsupported()),
  'ws-close': ([code]) => connection instanceof TcpConnection
    ? unsupported()
    : connection.socket.close(Number(code))
}

const streamCommands = {
  read: ([stream, reader], [, wanted], { rate }) => read(reader, wanted, Number(rate ?? 0)),
  write: async ([stream], [, count], { chunk, seed }) => {
    const sum = await write(stream, Number(count), Number(chunk ?? CHUNK), Number(seed ?? 0))
    return `bytes=${count} sha256=${sum}`
  },
  finish: ([stream]) => stream.close(),
  close: ([stream]) => stream.close(),
  reset: ([stream]) => stream.abort(new Error('as asked'))
}

async function run (command, words, options) {
  if (options.messages === 'large' || options.window) unsupported()
  if (command in commands) return await commands[command](words, options)
  await ready.promise
  if (command in sessionCommands) return await sessionCommands[command](words, options)
  const found = streams.get(words[0])
  if (!(command in streamCommands) || found === undefined) {
    throw new Error(`no command ${command}, or no such stream`)
  }
  return await streamCommands[command](found, words, options)
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  const [number, command, ...rest] = line.trim().split(/\s+/)
  const words = rest.filter((word) => !word.includes('='))
  const options = Object.fromEntries(
    rest.filter((word) => word.includes('=')).map((word) => word.split('=')))
  run(command, words, options).then(
    (text) => process.stdout.write(`${number} ok ${text ?? ''}`.trim() + '\n'),
    (error) => process.stdout.write(`${number} error ${error.message.replaceAll('\n', '; ')}\n`)
  )
}
process.exit(0)
