/* Fetches parts of pages and puts them in place. The URL always matches the page, so that reload, back,
   forward and "open in a new tab" need no code here. The one policy admits only the server's own HTML. */
const policy = globalThis.trustedTypes?.createPolicy("tunnelmux", { createHTML: (html) => html });

export function parse(html) {
  const template = document.createElement("template");
  template.innerHTML = policy ? policy.createHTML(html) : html;
  return template.content;
}

/* Whether a person is using this part now, so that it must not be replaced: a field with the cursor, a
   chosen row, an open dialog or menu. */
function isInUse(place) {
  return Boolean(
    place.querySelector("dialog[open], :popover-open, details[open], tbody input:checked") ||
    place.querySelector("input:focus, select:focus, textarea:focus"));
}

/* Replace the parts of this page with those of the fetched one that have the same ids. */
function put(fresh, selector) {
  for (const part of fresh.querySelectorAll(selector)) {
    const place = part.id && document.getElementById(part.id);
    if (!place || isInUse(place) || place.isEqualNode(part)) continue;
    const at = document.activeElement;
    const mark = place.contains(at) && (at.id || at.getAttribute("href"));
    place.replaceWith(part);
    if (mark) (document.getElementById(mark) ?? part.querySelector(`[href="${CSS.escape(mark)}"]`))?.focus();
  }
}

let running;

/* Fetch a page of this server and replace the parts that `selector` names. False when it failed. */
export async function fetchInto(url, selector) {
  running?.abort();
  running = new AbortController();
  try {
    const answer = await fetch(url, { headers: { Accept: "text/html" }, signal: running.signal });
    if (answer.status === 401) return location.reload();   // signed out: the page leads to sign-in
    if (!answer.ok) return false;
    put(parse(await answer.text()), selector);
    return true;
  } catch (error) {
    if (error.name === "AbortError") return true;
    return false;                                          // no network now; the next event tries again
  }
}

function formUrl(form) {
  const url = new URL(form.getAttribute("action"), location.href);
  url.search = new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== ""));
  return url.href;
}

addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.matches("form[data-swap]")) return;
  event.preventDefault();
  history.pushState({}, "", formUrl(form));
  if (!(await fetchInto(location.href, form.dataset.swap))) location.reload();
});

let typing;
addEventListener("input", (event) => {
  const form = event.target.closest("form[data-swap]");
  if (!form) return;
  clearTimeout(typing);
  typing = setTimeout(() => {
    history.replaceState({}, "", formUrl(form));           // one entry for a filter, not one a letter
    fetchInto(location.href, form.dataset.swap);
  }, event.target.type === "search" ? 200 : 0);
});
addEventListener("popstate", () => location.reload());
