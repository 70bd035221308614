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
  const open = all => [...rows, ...rejects].forEach(one => { if (!one.hidden) one.open = all; });
  find('f-open').addEventListener('click', () => open(true));
  find('f-close').addEventListener('click', () => open(false));
  filter();
})();
