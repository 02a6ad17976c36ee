/* <tm-player src="…/cast">: asciicast version 2 on xterm.js: play, seek, speed; pauses are cut to two seconds. */
import { LOOK, Terminal } from "./screen.js";

class Player extends HTMLElement {
  async connectedCallback() {
    const answer = await fetch(this.getAttribute("src"));
    if (!answer.ok) return this.fail((await answer.json().catch(() => ({}))).detail ?? `The server refused it (${answer.status}).`);
    const lines = (await answer.text()).trim().split("\n");
    let head;
    try { head = JSON.parse(lines[0]); } catch { return this.fail("The file is no recording."); }
    const [cols, rows] = [head.width, head.height];
    let at = 0;
    let then = 0;
    if (lines.length > 1 && !lines.at(-1).endsWith("]")) lines.pop();     // the session goes on, and its last line is incomplete
    this.events = lines.slice(1).filter((line) => line[0] === "[").map((line) => {
      const [time, kind, text] = JSON.parse(line);
      at += Math.min(time - then, head.idle_time_limit ?? 2);
      then = time;
      return { at, kind, text };
    });
    this.length = at;
    this.next = 0; this.at = 0; this.speed = 1;
    this.term = new Terminal({ ...LOOK, cols, rows, disableStdin: true, cursorInactiveStyle: "block" });
    const face = this.querySelector(".face");
    this.term.open(face);
    const fit = () => { this.term.options.fontSize = Math.max(6, Math.min(15, Math.floor(face.clientWidth / cols / 0.6062 * 2) / 2)); };
    fit();
    new ResizeObserver(fit).observe(face);
    this.bar = this.querySelector("input[type=range]");
    this.bar.max = this.length;
    this.bar.oninput = () => this.seek(Number(this.bar.value));
    this.button = this.querySelector("[data-play]");
    this.button.onclick = () => (this.playing ? this.stop() : this.play());
    this.querySelector("select").onchange = (event) => { this.speed = Number(event.target.value); };
    this.seek(0);
  }
  fail(words) {
    const place = this.querySelector("[data-problem]");
    place.textContent = words;
    place.hidden = false;
  }
  seek(at) {
    if (at < this.at || at === 0) { this.term.reset(); this.next = 0; }
    this.at = at;
    this.write();
  }
  write() {
    let text = "";
    for (; this.next < this.events.length && this.events[this.next].at <= this.at; this.next += 1) {
      const { kind, text: said } = this.events[this.next];
      if (kind === "o") text += said;
      else if (kind === "r") { if (text) this.term.write(text); text = ""; this.term.resize(...said.split("x").map(Number)); }
    }
    if (text) this.term.write(text);
    this.bar.value = this.at;
    const words = (s) => `${Math.floor(s / 60)}:${String(Math.floor(s % 60)).padStart(2, "0")}`;
    this.querySelector("output").textContent = `${words(this.at)} / ${words(this.length)}`;
    this.bar.setAttribute("aria-valuetext", words(this.at));
  }
  play() {
    if (this.at >= this.length) this.seek(0);
    this.button.setAttribute("aria-pressed", "true");
    this.button.querySelector("span").textContent = "Pause";
    let last = performance.now();
    const step = (now) => {
      if (!this.playing) return;
      this.at = Math.min(this.length, this.at + (now - last) / 1000 * this.speed);
      last = now;
      this.write();
      if (this.at >= this.length) this.stop(); else this.playing = requestAnimationFrame(step);
    };
    this.playing = requestAnimationFrame(step);
  }
  stop() {
    cancelAnimationFrame(this.playing);
    this.playing = 0;
    this.button.setAttribute("aria-pressed", "false");
    this.button.querySelector("span").textContent = "Play";
  }
}
customElements.define("tm-player", Player);
