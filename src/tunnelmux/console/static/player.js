/* <tm-player src="…/cast">: asciicast version 2 on xterm.js: play, seek, speed; pauses are cut to two seconds.
   A large recording is read in the pieces of its index, those that are looked at. */
import { LOOK, Terminal } from "./screen.js";

const side = (cells) => Math.min(1000, cells);   // a person's ssh may have said that its window is larger than any

class Player extends HTMLElement {
  async connectedCallback() {
    const source = this.getAttribute("src");
    let index;
    try { index = await this.get(source.replace(/cast$/, "index"), "json"); } catch (error) { return this.fail(error.message); }
    const { points, complete } = index;
    const count = points.length - (complete ? 1 : 0);
    // Each piece with the moment at which it begins; its events are there once it has been read.
    this.pieces = count > 1
      ? points.slice(0, count).map(({ played, columns, rows }, number) => ({ at: number && played, cols: side(columns), rows: side(rows), url: `${source}?piece=${number}` }))
      : [{ at: 0, url: source }];
    this.length = complete && count > 1 ? points.at(-1).played : 0;
    this.piece = 0; this.next = 0; this.at = 0; this.speed = 1;
    try { await this.read(0); if (!this.length) await this.read(this.pieces.length - 1); } catch (error) { return this.fail(error.message); }
    const { cols, rows } = this.pieces[0];
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
  async get(url, kind) {
    const answer = await fetch(url);
    if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).detail ?? `The server refused it (${answer.status}).`);
    return answer[kind]();
  }
  /* The events of a piece. */
  read(number) {
    const piece = this.pieces[number];
    piece.reading ??= this.get(piece.url, "text").then((text) => {
      const lines = text.trim().split("\n");
      let head;
      try { head = JSON.parse(lines[0]); } catch { throw new Error("The file is no recording."); }
      if (lines.length > 1 && !lines.at(-1).endsWith("]")) lines.pop();     // the session goes on, and its last line is incomplete
      let at = piece.at;
      let then = number ? null : 0;
      piece.events = lines.slice(1).filter((line) => line[0] === "[").map((line) => {
        const [time, kind, said] = JSON.parse(line);
        at += Math.min(time - (then ?? time), head.idle_time_limit ?? 2);
        then = time;
        return { at, kind, text: said };
      });
      piece.cols = side(head.width); piece.rows = side(head.height);
      if (number === this.pieces.length - 1) this.length = at;
    });
    piece.reading.catch(() => { piece.reading = null; });
    return piece.reading;
  }
  fail(words) {
    const place = this.querySelector("[data-problem]");
    place.textContent = words;
    place.hidden = false;
  }
  /* Show the moment `at`. Far from what is shown, that begins a piece earlier, so that the screen is full. */
  seek(at) {
    const wanted = Math.max(0, this.pieces.findLastIndex((piece) => piece.at <= at));
    if (at < this.at || at === 0 || wanted > this.piece + 1) {
      this.term.reset();
      this.piece = Math.max(0, wanted - 1);
      this.next = 0;
      if (this.pieces[this.piece].cols) this.term.resize(this.pieces[this.piece].cols, this.pieces[this.piece].rows);
    }
    this.at = at;
    this.write();
  }
  write() {
    let text = "";
    while (true) {
      const { events } = this.pieces[this.piece];
      if (!events) { this.wait(this.piece); break; }
      for (; this.next < events.length && events[this.next].at <= this.at; this.next += 1) {
        const { kind, text: said } = events[this.next];
        if (kind === "o") text += said;
        else if (kind === "r") { if (text) this.term.write(text); text = ""; this.term.resize(...said.split("x").map(Number).map(side)); }
      }
      if (this.next < events.length || this.piece === this.pieces.length - 1 || this.pieces[this.piece + 1].at > this.at) break;
      this.piece += 1;
      this.next = 0;
    }
    if (text) this.term.write(text);
    this.bar.max = this.length;
    this.bar.value = this.at;
    const words = (s) => `${Math.floor(s / 60)}:${String(Math.floor(s % 60)).padStart(2, "0")}`;
    this.querySelector("output").textContent = `${words(this.at)} / ${words(this.length)}`;
    this.bar.setAttribute("aria-valuetext", words(this.at));
  }
  /* Go on once this piece is there. */
  async wait(number) {
    if (this.waiting) return;
    this.waiting = true;
    try { await this.read(number); } catch (error) { this.stop(); return this.fail(error.message); } finally { this.waiting = false; }
    this.write();
  }
  play() {
    if (this.at >= this.length) this.seek(0);
    this.button.setAttribute("aria-pressed", "true");
    this.button.querySelector("span").textContent = "Pause";
    let last = performance.now();
    const step = (now) => {
      if (!this.playing) return;
      if (!this.waiting) this.at = Math.min(this.length, this.at + (now - last) / 1000 * this.speed);
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
