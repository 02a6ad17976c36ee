/* <tm-terminal src="…/terminal" account="root">: xterm.js on a WebSocket. Binary messages are what is typed and
   shown, text messages are JSON. The server keeps all output until the page has said that it showed it, so
   that nothing is missing after a lost connection. */
import "./styles-under-csp.js";
import { FitAddon } from "./addon-fit.mjs";
import { LOOK, Terminal } from "./screen.js";

const ACKNOWLEDGE = 16384;   // bytes shown between two messages that say so
const encoder = new TextEncoder();

class TerminalPage extends HTMLElement {
  connectedCallback() {
    this.term = new Terminal({ ...LOOK });
    this.fit = new FitAddon();
    this.term.loadAddon(this.fit);
    this.term.open(this);
    this.term.textarea?.setAttribute("aria-label", "Terminal");
    const fit = () => { if (this.clientWidth > 40 && this.clientHeight > 40) this.fit.fit(); };   // not while it is out of sight
    fit();
    new ResizeObserver(fit).observe(this);
    this.term.onData((text) => this.type(encoder.encode(text)));
    this.term.onBinary((text) => this.type(Uint8Array.from(text, (c) => c.charCodeAt(0))));
    this.term.onResize(({ cols, rows }) => this.say({ columns: cols, rows }));
    this.got = this.told = 0;
    this.wait = 500;
    addEventListener("online", () => { this.wait = 500; this.socket?.readyState !== 1 && this.again(0); });
    for (const key of document.querySelectorAll("[data-send]"))
      key.onclick = () => { this.term.input(JSON.parse(`"${key.dataset.send}"`)); this.term.focus(); };
    this.connect();
    this.term.focus();
  }
  say(word) { if (this.socket?.readyState === 1) this.socket.send(JSON.stringify(word)); }
  type(bytes) {
    if (this.socket?.readyState !== 1 || !this.resume) return;
    for (let at = 0; at < bytes.length; at += 32768) this.socket.send(bytes.subarray(at, at + 32768));
  }
  connect() {
    const socket = this.socket = new WebSocket(new URL(this.getAttribute("src"), location.href.replace(/^http/, "ws")));
    socket.binaryType = "arraybuffer";
    const size = { columns: this.term.cols, rows: this.term.rows };
    socket.onopen = () => this.say(this.resume ? { ...size, resume: this.resume, at: this.got } : { ...size, account: this.getAttribute("account") });
    socket.onmessage = ({ data }) => {
      if (typeof data === "string") return this.heard(JSON.parse(data));
      this.got += data.byteLength;
      const place = this.got;
      this.term.write(new Uint8Array(data), () => {
        if (place - this.told < ACKNOWLEDGE && place !== this.got) return;
        this.told = place;
        this.say({ seen: place });
      });
    };
    socket.onclose = () => {
      if (this.isOver || this.socket !== socket) return;
      this.show("lost", "connection lost, trying again");
      this.again(this.wait = Math.min(8000, this.wait * 1.7));
    };
  }
  again(pause) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.connect(), pause);
  }
  heard(word) {
    if (word.kind === "open") {
      this.resume = word.resume;
      this.wait = 500;
      this.show("on", "connected");
    } else if (word.kind === "over") {
      this.isOver = true;
      this.show("lost", "over");
      this.term.options.disableStdin = true;
      const end = document.querySelector("[data-over]");
      end.hidden = false;
      end.querySelector("[data-story]").textContent = word.story;
    }
  }
  show(state, words) {
    const mark = document.querySelector("[data-live]");
    mark.dataset.live = state;
    mark.textContent = words;
  }
}
customElements.define("tm-terminal", TerminalPage);

/* How long a lease still runs. */
for (const clock of document.querySelectorAll("[data-until]")) {
  const tick = () => {
    const left = Math.max(0, Math.round((Date.parse(clock.dataset.until) - Date.now()) / 1000));
    const [hours, minutes, seconds] = [Math.floor(left / 3600), Math.floor(left / 60) % 60, left % 60];
    clock.textContent = (hours ? `${hours}:` : "") + `${String(minutes).padStart(2, "0")}:${String(seconds).padStart(2, "0")}`;
  };
  tick();
  setInterval(tick, 1000);
}
