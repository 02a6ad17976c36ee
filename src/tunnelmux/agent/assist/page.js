const find = (id) => document.getElementById(id);

const words = { off: "Off", ask: "Asks about each request", allow: "On" };

function time(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const pad = (number) => String(number).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  const rest = `${pad(Math.floor((whole % 3600) / 60))}:${pad(whole % 60)}`;
  return hours ? `${hours}:${rest}` : rest;
}

function button(text, order, kind) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.className = kind;
  made.addEventListener("click", () => send(order));
  return made;
}

// Rows stay as long as their lease: a button must not go away under a finger.
const rows = new Map();

function row(lease) {
  let made = rows.get(lease.id);
  if (made === undefined || made.dataset.state !== lease.state) {
    const fresh = find("row").content.firstElementChild.cloneNode(true);
    fresh.dataset.state = lease.state;
    fresh.querySelector("strong").textContent = lease.who;
    fresh.querySelector(".why").textContent = lease.reason;
    const buttons = fresh.querySelector(".buttons");
    if (lease.state === "asked") {
      buttons.append(
        button("Let them in", { do: "yes", lease: lease.id }, ""),
        button("Refuse", { do: "no", lease: lease.id }, "stop"),
      );
    } else {
      buttons.append(button("Stop", { do: "stop", lease: lease.id }, "stop"));
    }
    made?.remove();
    rows.set(lease.id, fresh);
    made = fresh;
  }
  const ways = [lease.recorded && "recorded", lease.sealed && "not recorded"].filter(Boolean);
  const open = lease.connections.length;
  const now = open ? `${open} connected now` : "not connected now";
  made.querySelector(".what").textContent =
    `${lease.services.join(", ")}; ${ways.join(" or ")}; ` +
    (lease.state === "asked" ? `wants ${time(lease.seconds_left)}` : now);
  made.querySelector(".left").textContent =
    lease.state === "asked"
      ? `refused in ${time(lease.answer_within)}`
      : `ends in ${time(lease.seconds_left)}`;
  return made;
}

function show(status) {
  find("serial").textContent = status.serial || "–";
  find("state").textContent = words[status.mode];
  find("state").dataset.mode = status.mode;
  const left = status.seconds_left;
  find("left").textContent = left === null ? "" : `for ${time(left)} more`;
  find("on").disabled = status.configured === "off" || status.switch === "on";
  find("off").disabled = status.switch === "off" || status.configured === "off";
  find("make").hidden = !status.makes_codes;
  const list = find("leases");
  const ids = new Set(status.leases.map((lease) => lease.id));
  for (const [id, made] of rows) {
    if (!ids.has(id)) {
      made.remove();
      rows.delete(id);
    }
  }
  for (const lease of status.leases) {
    const made = row(lease);
    if (made.parentNode !== list) list.append(made);
  }
  if (!ids.has(find("lease").textContent)) find("code").hidden = true;
  find("none").hidden = ids.size > 0;
}

function told(problem) {
  find("problem").textContent = problem ?? "";
}

async function send(order) {
  try {
    const answer = await fetch("/api/assist", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(order),
    });
    const said = await answer.json();
    told(said.problem);
    if (said.code) {
      find("letters").textContent = said.code;
      find("lease").textContent = said.lease;
      find("code").hidden = false;
    }
    show(said.status);
  } catch {
    told("The agent does not answer.");
  }
}

async function look() {
  try {
    const answer = await fetch("/api/assist");
    show(await answer.json());
    if (find("problem").textContent === "The agent does not answer.") told("");
  } catch {
    told("The agent does not answer.");
  }
}

find("on").addEventListener("click", () => send({ do: "on" }));
find("off").addEventListener("click", () => send({ do: "off" }));
find("make").addEventListener("click", () => send({ do: "code" }));
look();
setInterval(look, 1000);
