'use strict';
(() => {
  const find = id => document.getElementById(id);
  const text = find('f-text'), dataset = find('f-dataset'), role = find('f-role'), reason = find('f-reason');
  const rows = [...document.querySelectorAll('#list .row')], rejects = [...document.querySelectorAll('.reject')];
  // What is shown for what cannot be seen is not searched for.
  const said = new Map([...rows, ...rejects].map(
    one => [one, one.textContent.replace(/↵\n/g, '\n').replace(/␣/g, ' ').toLowerCase()]));
  const wanted = one =>
    (!dataset.value || one.dataset.dataset === dataset.value) &&
    (!role.value || (one.dataset.roles || '').split(' ').includes(role.value)) &&
    (!reason.value || one.dataset.reason === reason.value) &&
    (!text.value || said.get(one).includes(text.value.toLowerCase()));
  const filter = () => {
    for (const one of [...rows, ...rejects]) one.hidden = !wanted(one);
    for (const group of document.querySelectorAll('.reason')) group.hidden = !group.querySelector('.reject:not([hidden])');
    for (const turn of document.querySelectorAll('.turn[data-role]'))
      turn.classList.toggle('dim', role.value !== '' && turn.dataset.role !== role.value);
    const count = (all, what) => `${all.filter(one => !one.hidden).length} of ${all.length} ${what}`;
    find('f-count').value = `${count(rows, 'rows')}, ${count(rejects, 'rejected')}`;
  };
  for (const one of [text, dataset, role, reason]) one.addEventListener('input', filter);
  document.querySelector('.filters').addEventListener('submit', event => event.preventDefault());
  const shown = () => [...rows, ...rejects].filter(one => !one.hidden);
  find('f-open').addEventListener('click', () => shown().forEach(one => { one.open = true; }));
  find('f-close').addEventListener('click', () => shown().forEach(one => { one.open = false; }));

  // The numbers of a token, also where nothing can be pointed with.
  const at = find('at');
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
    if (event.key === '/') { event.preventDefault(); text.focus(); return; }
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
  filter();
})();
