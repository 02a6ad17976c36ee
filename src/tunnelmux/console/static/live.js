/* <tm-live kinds="device.changed …">: follows /api/events and keeps the page's [data-part] elements
   up to date by fetching the page again. Only the server renders, and a burst of events costs one fetch.
   A tab that is not visible holds no stream: browsers allow few connections to one host. */
import { follow } from "./stream.js";
import { fetchInto } from "./swap.js";

const PAUSE = 1000;      // ms between two fetches at the least
const LATE = 4000;       // ms: proxies write in batches, so that some changes come later than their event
const LATEST = 60000;    // ms: after 4, 16 and 64 s without another event there is no more to come

class Live extends HTMLElement {
  connectedCallback() {
    document.addEventListener("visibilitychange", this);
    addEventListener("pagehide", this);
    addEventListener("pageshow", this);
    if (!document.hidden) this.open();
  }
  disconnectedCallback() {
    document.removeEventListener("visibilitychange", this);
    removeEventListener("pagehide", this);
    removeEventListener("pageshow", this);
    this.close();
  }
  handleEvent(event) {
    if (event.type === "pagehide" || document.hidden) this.close();
    else if (!this.end) { this.open(); this.refresh(); }
  }
  open() {
    this.end = follow("/api/events", (stream) => {
      for (const kind of [...this.getAttribute("kinds").split(" "), "gap"])
        stream.addEventListener(kind, () => this.refresh());
    });
  }
  close() {
    this.end?.();
    this.end = null;
    clearTimeout(this.soon);
    clearTimeout(this.later);
    this.soon = null;
  }
  refresh() {
    this.soon ??= setTimeout(async () => {
      await fetchInto(location.href, "[data-part]");
      this.soon = null;
    }, Math.max(100, PAUSE - (performance.now() - (this.last ?? -PAUSE))));
    this.last = performance.now();
    this.lookLater(LATE);
  }
  lookLater(wait) {
    clearTimeout(this.later);
    this.later = setTimeout(() => {
      fetchInto(location.href, "[data-part]");
      if (wait < LATEST) this.lookLater(wait * 4);
    }, wait);
  }
}
customElements.define("tm-live", Live);
