/* The console's own script. Every page can be read without it; changes go to the REST API with it. */
import "./live.js";
import { fetchInto } from "./swap.js";

const root = document.documentElement;
root.classList.add("js");

/* Toasts: shown above dialogs, because they are in a popover. */
const toasts = document.getElementById("toasts");
function toast(words, kind = "good") {
  const box = document.getElementById("toast-template").content.firstElementChild.cloneNode(true);
  box.dataset.k = kind;
  box.querySelector("[data-f=words]").textContent = words;
  const close = () => { box.remove(); if (!toasts.children.length) toasts.hidePopover(); };
  box.querySelector("[data-close]").onclick = close;
  toasts.append(box);
  toasts.hidePopover(); toasts.showPopover();
  let left = setTimeout(close, 8000);
  box.onmouseenter = box.onfocusin = () => clearTimeout(left);
  box.onmouseleave = box.onfocusout = () => { left = setTimeout(close, 3000); };
}

/* Copy: the command is in the page; the button only puts it on the clipboard. */
addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const code = button.closest(".code").querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.setAttribute("aria-label", "Copied");
    setTimeout(() => button.setAttribute("aria-label", "Copy"), 1600);
    toast("Copied to the clipboard");
  } catch {
    getSelection().selectAllChildren(code);
    toast("Selected: press Ctrl+C", "warn");
  }
});

/* Dialogs: <button command="show-modal" commandfor="id"> needs no script where the browser knows it. */
if (!("commandForElement" in HTMLButtonElement.prototype))
  addEventListener("click", (event) => {
    const button = event.target.closest("[commandfor]");
    const dialog = button && document.getElementById(button.getAttribute("commandfor"));
    if (dialog) button.getAttribute("command") === "close" ? dialog.close() : dialog.showModal();
  });

/* The scheme of colours is a cookie, so that the server writes it into the page. */
addEventListener("click", (event) => {
  const button = event.target.closest("[data-scheme]");
  if (!button) return;
  const scheme = button.dataset.scheme;
  document.cookie = `tunnelmux-scheme=${scheme}; Path=/; SameSite=Lax; Secure; Max-Age=${scheme ? 31536000 : 0}`;
  if (scheme) root.dataset.theme = scheme; else delete root.dataset.theme;
  for (const other of button.closest("ul").querySelectorAll("[data-scheme]"))
    other.toggleAttribute("aria-current", other === button);
});

/* Keys: "/" to the search field, "g d" and the like from the rail's data-key, "?" to the list of them. */
let before = "";
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select, dialog[open]")) return;
  if (event.key === "/") {
    event.preventDefault();
    (document.querySelector("main input[type=search]") ?? document.querySelector("[role=search] input"))?.focus();
  } else if (event.key === "?") document.getElementById("keys")?.showModal();
  else if (before === "g") document.querySelector(`.rail a[data-key="${CSS.escape(event.key)}"]`)?.click();
  else if (event.key === "j" || event.key === "k") {
    const links = [...document.querySelectorAll("[data-list] :is(th, li) a")];
    const at = links.indexOf(document.activeElement);
    links[Math.max(0, Math.min(links.length - 1, at + (event.key === "j" ? 1 : -1)))]?.focus();
  }
  before = event.key;
});

/* Rows are chosen by [data-choose]; #bulk shows what can be done with all that are. */
const chosen = () => [...document.querySelectorAll("[data-choose]:checked")];
function tellChosen() {
  const bar = document.getElementById("bulk");
  if (!bar) return;
  const count = chosen().length;
  bar.hidden = count === 0;
  for (const place of document.querySelectorAll("[data-chosen-count]")) place.textContent = count;
}
function choose(all) {
  for (const box of document.querySelectorAll("[data-choose]")) box.checked = all;
  tellChosen();
}
addEventListener("change", (event) => { if (event.target.matches("[data-choose]")) tellChosen(); });
addEventListener("click", (event) => {
  const button = event.target.closest("[data-choose-all], [data-choose-none]");
  if (button) choose(button.hasAttribute("data-choose-all"));
});

/* <form data-call="METHOD" action="/api/…">: sends its fields as JSON to the REST API and says what
   became of it. Afterwards the page's parts are fetched anew, or data-then is opened. What is told
   once, a token or a link, is shown in the element that data-tell names. */
addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.matches("[data-call]")) return;
  event.preventDefault();
  const data = new FormData(form, event.submitter);
  const fields = {};
  for (const name of new Set(data.keys())) {               // "scopes[]" is a list
    if (name.endsWith("[]")) fields[name.slice(0, -2)] = data.getAll(name);
    else if (data.get(name) !== "") fields[name] = data.get(name);
  }
  if (form.dataset.chosen) fields[form.dataset.chosen] = chosen().map((box) => box.value);
  const body = form.dataset.call === "DELETE" ? undefined : JSON.stringify(fields);
  let answer;
  try {
    answer = await fetch(form.getAttribute("action"), { method: form.dataset.call, body, headers: { Accept: "application/json", "Content-Type": "application/json" } });
  } catch {
    return toast("The server did not answer: look at your network and try again.", "bad");
  }
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) return toast(told.detail ?? `The server refused it (${answer.status}).`, "bad");
  form.closest("dialog")?.close();
  form.closest("[popover]")?.hidePopover();
  if (told.redirect) return location.assign(told.redirect);
  if (form.dataset.then) return location.assign(form.dataset.then);
  if (told.failed?.length) toast(`${told.changed} changed, ${told.failed.length} not: ${told.failed[0].detail}`, "bad");
  else toast(form.dataset.done ?? "Done");
  if (form.dataset.chosen) choose(false);
  if (form.dataset.tell) {                                 // a secret that is shown only once
    const place = document.getElementById(form.dataset.tell);
    place.querySelector("code").textContent = told.token ?? told.url;
    place.hidden = false;
    form.reset();
  }
  document.activeElement?.blur();
  await fetchInto(location.href, "[data-part]");
});
