/* A stream of events, for as long as it is looked at. Where its connection is lost, the browser tries again. Where
   it is refused the browser gives up: then the page is fetched, which leads a person who is signed out to sign in. */
import { fetchInto } from "./swap.js";

const AGAIN = 10000;     // ms until a stream that was refused is asked for again

/* Follow `url`; `listen` gets each stream, to add what it listens to. Returns what ends it. */
export function follow(url, listen) {
  let stream, timer;
  const open = () => {
    stream = new EventSource(url);
    stream.onopen = () => tell("on", "live");
    stream.onerror = () => {
      tell("lost", "not live, trying again");
      if (stream.readyState !== EventSource.CLOSED) return;
      fetchInto(location.href, "[data-part]");
      timer = setTimeout(open, AGAIN);
    };
    listen(stream);
  };
  open();
  return () => { stream.close(); clearTimeout(timer); };
}

function tell(state, words) {
  for (const mark of document.querySelectorAll("[data-live]")) {
    mark.dataset.live = state;
    mark.textContent = words;
  }
}
