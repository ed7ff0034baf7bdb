// What every page does beyond plain HTML: keys press what carries them, times are told in the reader's own zone, and a
// page that says so is loaded again while something on it is under way. Without this script every page works, only less
// comfortably.

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
  if (event.target.method === "post") event.target.dataset.sent = "yes";
});
addEventListener("pageshow", () => document.querySelectorAll("[data-sent]").forEach((form) => delete form.dataset.sent));

function tellTimes(root) {
  const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  for (const time of root.querySelectorAll("time[datetime]")) time.textContent = format.format(new Date(time.dateTime));
}
tellTimes(document);

document.querySelector("#refused")?.focus();

// Without TLS a browser drops the cookie of a sign-in without a word.
if (!isSecureContext) document.querySelector("[data-insecure]")?.removeAttribute("hidden");

// Live parts: the same page is fetched and the part taken from it. Nobody who has left the desk stays signed in by it.
const LIVE_MS = 2000;
const DESK_MS = 10 * 60 * 1000;
let touched = Date.now();
for (const name of ["keydown", "pointerdown", "pointermove"]) addEventListener(name, () => (touched = Date.now()));

async function follow(id) {
  const part = document.getElementById(id);
  if (!part?.hasAttribute("data-live")) return;
  if (!document.hidden && Date.now() - touched < DESK_MS && !part.contains(document.activeElement)) {
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (answer.redirected || answer.status === 401) return location.reload();
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById(id);
      if (fresh && fresh.innerHTML !== part.dataset.html) {
        const replaced = document.importNode(fresh, true);
        replaced.dataset.html = fresh.innerHTML;
        part.replaceWith(replaced);
        tellTimes(replaced);
      }
    } catch {
      // The service is away for a moment: the next turn asks again.
    }
  }
  setTimeout(() => follow(id), LIVE_MS);
}
for (const part of document.querySelectorAll("[data-live]")) setTimeout(() => follow(part.id), LIVE_MS);
