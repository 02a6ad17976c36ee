/* <tm-requests src="/api/devices/…/requests">: requests as they come, the newest on top.
   <tm-refetch>: fetches a page's [data-part] elements again and again while its tab is in sight. */
import { follow } from "./stream.js";
import { fetchInto } from "./swap.js";

const MOST = 300;        // rows that stay: more than a person reads, and little for the browser
const PAUSE = 2000;      // ms between two fetches

const size = (bytes) => {
  let unit = 0;
  for (; bytes >= 1000 && unit < 4; unit += 1) bytes /= 1000;
  return `${Number(bytes.toPrecision(3))} ${["B", "kB", "MB", "GB", "TB"][unit]}`;
};
const duration = (seconds) => (seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`);

/* A tab out of sight holds no stream: browsers have few connections to one host. */
class Watching extends HTMLElement {
  connectedCallback() {
    document.addEventListener("visibilitychange", this);
    addEventListener("pagehide", this);
    addEventListener("pageshow", this);
    if (!document.hidden) this.begin();
  }
  disconnectedCallback() {
    document.removeEventListener("visibilitychange", this);
    removeEventListener("pagehide", this);
    removeEventListener("pageshow", this);
    this.end();
  }
  handleEvent(event) {
    this.end();
    if (event.type !== "pagehide" && !document.hidden) this.begin();
  }
}

class Requests extends Watching {
  begin() {
    this.rows ??= this.querySelector("[data-rows]");
    this.leave = follow(this.getAttribute("src"), (stream) => {
      stream.addEventListener("request", (event) => this.add(JSON.parse(event.data)));
      stream.addEventListener("dropped", (event) => this.miss(JSON.parse(event.data).count));
    });
    const clear = document.querySelector("[data-clear]");
    if (clear) clear.onclick = () => { this.rows.replaceChildren(); this.missed = 0; this.miss(0); };
  }
  end() {
    this.leave?.();
    this.leave = null;
  }
  add(seen) {
    const row = this.querySelector("template").content.firstElementChild.cloneNode(true);
    const put = (name, words) => { row.querySelector(`[data-f=${name}]`).textContent = words; };
    put("status", seen.status ?? "–");
    put("method", seen.method ?? seen.way);
    put("path", seen.path ?? "");
    put("more", [
      new Date(seen.at).toLocaleTimeString(), seen.service, duration(seen.seconds ?? 0),
      `${size(seen.bytesIn ?? 0)} in, ${size(seen.bytesOut ?? 0)} out`, seen.visitor,
      seen.problem ?? seen.ended ?? seen.reason,
    ].filter(Boolean).join(" · "));
    this.rows.prepend(row);
    while (this.rows.children.length > MOST) this.rows.lastElementChild.remove();
    this.querySelector("[data-none]").hidden = true;
  }
  miss(count) {
    this.missed = (this.missed ?? 0) + count;
    this.querySelector("[data-missed]").textContent = this.missed ? `${this.missed} are missing` : "";
  }
}

class Refetch extends Watching {
  begin() {
    this.timer = setInterval(() => fetchInto(location.href, "[data-part]"), PAUSE);
  }
  end() {
    clearInterval(this.timer);
  }
}

customElements.define("tm-requests", Requests);
customElements.define("tm-refetch", Refetch);
