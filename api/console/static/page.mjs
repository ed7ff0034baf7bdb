// What every page does beyond plain HTML: keys press what carries them, times are told in the reader's own zone, and a
// page that says so follows what goes on. Without this script every page works, only less comfortably.

const typing = (target) => target.closest("textarea, select, input:not([type=range], [type=radio], [type=checkbox])");

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing || event.repeat) return;
  if (event.key === "Escape" && typing(event.target)) return event.target.blur();
  if (typing(event.target)) return;
  if (event.key === "Enter" && event.target.closest("a, button, summary, [tabindex='0']")) return;
  const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const found = document.querySelector(`[data-key="${CSS.escape(name)}"]`);
  if (!found) return;
  event.preventDefault();
  found.focus();
  if (!typing(found)) found.click();
});

// A form is sent once, however often its key is pressed.
document.addEventListener("submit", (event) => {
  if (event.target.dataset.sent) return event.preventDefault();
  if (event.target.method === "post" && !("again" in event.target.dataset)) event.target.dataset.sent = "yes";
});
addEventListener("pageshow", () => document.querySelectorAll("[data-sent]").forEach((form) => delete form.dataset.sent));

// What is ticked and not yet sent goes along where a link shows the same page with more or less on it.
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-keeps]");
  if (!link) return;
  const url = new URL(link.href);
  url.searchParams.delete("ticked");
  for (const box of document.querySelectorAll("form.answer input:checked")) url.searchParams.append("ticked", box.value);
  link.href = url.href;
});

function tellTimes(root) {
  const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  for (const time of root.querySelectorAll("time[datetime]")) time.textContent = format.format(new Date(time.dateTime));
}
tellTimes(document);

document.querySelector("#refused")?.focus();

// Without TLS a browser drops the cookie of a sign-in without a word.
if (!isSecureContext) document.querySelector("[data-insecure]")?.removeAttribute("hidden");

// A live part of a page: the service says when what it shows has changed, and it is asked for again. Nobody who has left
// the desk stays signed in by it. A page that nobody looks at listens to nothing: a browser has few connections to give.
const AGAIN_MS = 10_000;
const part = () => document.querySelector("[data-live]");
let stream, waiting;

function listen() {
  hush();
  if (!part() || document.hidden) return;
  const { live, mark } = part().dataset;
  stream = new EventSource(`/console/live?of=${encodeURIComponent(live)}&mark=${encodeURIComponent(mark)}`);
  stream.addEventListener("changed", renew);
  stream.addEventListener("ended", leave);
  stream.addEventListener("later", later);
  stream.addEventListener("error", later);
}
function hush() {
  stream?.close();
  stream = undefined;
  clearTimeout(waiting);
}
function later() {
  hush();
  waiting = setTimeout(listen, AGAIN_MS * (1 + Math.random()));
}

async function renew() {
  const old = part();
  if (!old) return;
  if (old.contains(document.activeElement)) return old.addEventListener("focusout", () => setTimeout(renew), { once: true });
  const answer = await fetch(old.dataset.from, { headers: { "Overread-By-Itself": "yes" } }).catch(() => undefined);
  if (answer?.redirected) return leave();
  if (!answer?.ok) return later();
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById(old.id);
  if (!fresh || old !== part()) return;
  const replaced = document.importNode(fresh, true);
  for (const { id } of old.querySelectorAll("details[open][id]")) replaced.querySelector(`#${CSS.escape(id)}`)?.setAttribute("open", "");
  old.replaceWith(replaced);
  tellTimes(replaced);
  if (!part()) hush();
}

// The session is over. What was typed is not thrown away for it.
function leave() {
  hush();
  const typed = [...document.querySelectorAll("input, textarea")].some((field) => field.type !== "hidden" && field.value !== field.defaultValue);
  if (!typed) return location.reload();
  document.querySelector("[data-left]")?.removeAttribute("hidden");
}

document.addEventListener("visibilitychange", () => (document.hidden ? hush() : listen()));
addEventListener("pagehide", hush);
listen();
