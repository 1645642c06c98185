// What the pages do beyond htmx. Everything works without it, only less smoothly.
(() => {
  "use strict";
  const STALE_MS = 5000;
  let last = Date.now();
  const age = document.querySelector(".age");
  const show = () => {
    if (!age) return;
    const ms = Date.now() - last;
    const stale = ms > STALE_MS;
    age.classList.toggle("stale", stale);
    age.textContent = stale ? `not updated for ${Math.round(ms / 1000)} s` : "live";
  };
  if (document.body.hasAttribute("sse-connect")) {
    document.body.addEventListener("htmx:sseMessage", () => { last = Date.now(); show(); });
    // Whoever stands in a part with the keyboard, or marks text in it, keeps it.
    document.body.addEventListener("htmx:sseBeforeMessage", (event) => {
      const part = event.target;
      const chosen = window.getSelection();
      const holds = part.contains(document.activeElement) && document.activeElement !== document.body;
      const marks = chosen && !chosen.isCollapsed && part.contains(chosen.anchorNode);
      if (holds || marks) { event.preventDefault(); last = Date.now(); }
    });
    setInterval(show, 1000);
  }
  for (const select of document.querySelectorAll("select[data-submits]")) {
    select.addEventListener("change", () => select.form.requestSubmit());
    for (const button of select.form.querySelectorAll("button")) button.hidden = true;
  }
  for (const button of document.querySelectorAll("button[data-copies]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const text = document.getElementById(button.dataset.copies).textContent;
      const said = button.textContent;
      try { await navigator.clipboard.writeText(text); button.textContent = "copied"; } catch { button.textContent = "press Ctrl+C"; }
      setTimeout(() => { button.textContent = said; }, 1500);
    });
  }
  for (const drop of document.querySelectorAll(".drop")) {
    const input = drop.querySelector("input[type=file]");
    drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
    drop.addEventListener("dragleave", () => drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      if (event.dataTransfer.files.length > 0) { input.files = event.dataTransfer.files; }
    });
  }
  for (const time of document.querySelectorAll("time[datetime]")) time.title = new Date(time.dateTime).toLocaleString();
})();
