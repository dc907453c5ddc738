// What Quarto's own scripts do on the published pages: menu, search, dark mode, enlarged figures, a button that copies code.
(() => {
  const $ = id => document.getElementById(id);
  const root = document.body.dataset.root;

  // The menu of a narrow window
  $("site-menu").onclick = () => {
    const open = $("site-menu").getAttribute("aria-expanded") !== "true";
    $("site-menu").setAttribute("aria-expanded", open);
    document.body.classList.toggle("menu-open", open);
  };
  const current = document.querySelector('#site-pages [aria-current="page"]');
  if (current) $("site-pages").scrollTop = Math.max(0, current.offsetTop - 200);

  // Dark mode: as the system has it, until the reader chooses
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (document.documentElement.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const label = () => {
    $("site-theme").textContent = dark() ? "Light" : "Dark";
    $("site-theme").setAttribute("aria-label", `Switch to ${dark() ? "light" : "dark"} colours`);
  };
  $("site-theme").onclick = () => {
    const theme = dark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try { localStorage.setItem("theme", theme); } catch { /* pages opened as files may have no storage */ }
    label();
  };
  system.addEventListener("change", label);
  label();

  // Search: every word must begin a word of the section. The index is a script, because a page opened as a file can't fetch.
  let index = null;
  const load = () => index ??= new Promise(done => {
    const script = document.createElement("script");
    script.src = `${root}/search-index.js`;
    script.onload = () => done(window.searchIndex.map(entry => ({ ...entry, all: ` ${entry.page} ${entry.heading} ${entry.text}`.toLowerCase() })));
    document.head.append(script);
  });
  const begins = (text, word) => new RegExp(`(^|[^\\p{L}\\p{N}])${word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}`, "iu").test(text);
  const score = (entry, words) => words.reduce((sum, word) => sum + 8 * begins(entry.page, word) + 4 * begins(entry.heading, word) + 1, 0);
  const element = (name, text, className) => Object.assign(document.createElement(name), { textContent: text, className: className || "" });

  async function search() {
    const words = $("site-search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const results = $("site-results");
    results.hidden = words.length === 0;
    if (!words.length) return;
    const found = (await load()).filter(entry => words.every(word => entry.all.includes(word) && begins(entry.all, word)));
    found.sort((a, b) => score(b, words) - score(a, words));
    const first = found.slice(0, 20);
    const more = found.length > first.length ? `, the first ${first.length}` : "";
    results.replaceChildren(element("p", found.length ? `${found.length} section${found.length > 1 ? "s" : ""}${more}` : "Nothing found."));
    for (const entry of first) {
      const link = element("a", entry.heading ? `${entry.page} › ${entry.heading}` : entry.page);
      link.href = `${root}/${entry.url}`;
      const at = Math.max(0, entry.text.toLowerCase().indexOf(words[0]) - 50);
      link.append(element("span", `${at ? "…" : ""}${entry.text.slice(at, at + 150)}…`));
      results.append(link);
    }
  }
  const close = () => { $("site-results").hidden = true; };
  $("site-search").addEventListener("focus", load, { once: true });
  $("site-search").addEventListener("input", search);
  $("site-search").form.onsubmit = event => { event.preventDefault(); if (!$("site-results").hidden) $("site-results").querySelector("a")?.click(); };
  $("site-results").addEventListener("click", close);
  $("site-search").form.addEventListener("focusout", event => {     // by Tab; a click beside it is seen below
    if (event.relatedTarget && !event.currentTarget.contains(event.relatedTarget)) close();
  });
  document.addEventListener("keydown", event => {
    if (event.key === "/" && !/INPUT|TEXTAREA|SELECT/.test(document.activeElement.tagName)) { event.preventDefault(); $("site-search").focus(); }
    if (event.key === "Escape" && !$("site-results").hidden) { close(); $("site-search").focus(); }
  });
  document.addEventListener("click", event => { if (!event.target.closest(".search")) close(); });

  // Figures: the link to the picture's file opens the picture in a dialog, which Escape or a click closes
  const dialog = $("site-enlarged");
  document.querySelectorAll("a.enlarge").forEach(link => link.addEventListener("click", event => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const picture = link.querySelector("img");
    Object.assign(dialog.querySelector("img"), { src: picture.src, alt: picture.alt });
    dialog.querySelector("p").textContent = link.closest("figure")?.querySelector("figcaption")?.textContent ?? "";
    dialog.showModal();
  }));
  dialog.addEventListener("click", event => { if (event.target.tagName !== "P") dialog.close(); });

  // What scrolls must be reachable by keyboard; code can be copied
  const reachable = () => document.querySelectorAll("main pre, .table-wrapper, .formula").forEach(box => {
    if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0; else box.removeAttribute("tabindex");
  });
  addEventListener("resize", reachable);
  addEventListener("toggle", reachable, true);
  reachable();
  if (navigator.clipboard) document.querySelectorAll(".sourceCode").forEach(box => {
    const button = Object.assign(element("button", "Copy", "copy"), { type: "button" });
    button.onclick = async () => {
      await navigator.clipboard.writeText(box.querySelector("pre").textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    };
    box.append(button);
  });
})();
