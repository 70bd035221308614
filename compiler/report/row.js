'use strict';
// Rows: the numbers of their tokens, and keys.
(() => {
  const shown = () => [...document.querySelectorAll('.row:not([hidden])')];
  // The numbers of a token, also where nothing can be pointed with.
  const at = document.getElementById('at');
  let current = null;
  const tell = token => {
    if (current) current.classList.remove('at');
    current = token;
    at.hidden = !token;
    if (!token) return;
    token.classList.add('at');
    at.textContent = `${token.textContent.trim() || '(space)'}   ${token.title}`;
  };
  const token = event => event.target.closest && event.target.closest('.row i[title]');
  document.addEventListener('pointerover', event => tell(token(event)));
  document.addEventListener('click', event => tell(token(event)));

  document.addEventListener('keydown', event => {
    const inside = event.target.closest('input,select,textarea,button');
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === 'Escape') { tell(null); if (inside) inside.blur(); return; }
    if (inside) return;
    const search = document.querySelector('input[type=search]');
    if (event.key === '/' && search) { event.preventDefault(); search.focus(); return; }
    if (event.key === 'j' || event.key === 'k') {
      const all = shown(), here = all.indexOf(document.activeElement.closest('.row'));
      const next = all[Math.min(Math.max(here + (event.key === 'j' ? 1 : -1), 0), all.length - 1)];
      if (next) next.querySelector('summary').focus();
      return;
    }
    const field = event.target.closest('.text');
    if (field && (event.key === 'ArrowRight' || event.key === 'ArrowLeft')) {
      const all = [...field.querySelectorAll('i[title]')], here = all.indexOf(current);
      const next = all[Math.min(Math.max(here + (event.key === 'ArrowRight' ? 1 : -1), 0), all.length - 1)];
      if (next) { event.preventDefault(); tell(next); next.scrollIntoView({block: 'nearest'}); }
    }
  });
})();
