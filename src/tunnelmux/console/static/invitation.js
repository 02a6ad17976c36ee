/* The page of an invitation: its secret stands behind "#", which no server sees, and is kept in this
   tab while its person signs in at the provider, which leads back here without it. */
const KEY = "tunnelmux-invitation";
const given = decodeURIComponent(location.hash.slice(1));
if (given) {
  sessionStorage.setItem(KEY, given);
  history.replaceState({}, "", location.pathname);          // not in the history of a shared machine
}
const secret = sessionStorage.getItem(KEY);
document.querySelector(secret ? "[data-invitation]" : "[data-no-invitation]").hidden = false;
const field = document.querySelector("[data-invitation] [name=secret]");
if (secret && field) {
  field.value = secret;
  field.form.addEventListener("submit", () => addEventListener("pagehide", () => sessionStorage.removeItem(KEY)));
}
