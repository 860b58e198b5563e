const list = element.querySelector('.hits');
const note = element.querySelector('.note');
const card = hit => {
  const frame = make('div', 'frame', hit.picture ? picture(hit.picture, hit.text) : hit.text);
  const line = make('div', 'line', make('b', '', hit.score), make('span', '', hit.text || hit.id));
  const button = make('button', 'hit', frame, line);
  button.dataset.id = button.title = hit.id;
  return button;
};
const show = () => {
  const { hits, error } = props.value;
  list.replaceChildren(...hits.map(card));
  note.textContent = error;
  note.hidden = !error;
};
watch('value', show);
show();
element.addEventListener('click', event => {
  const chosen = event.target.closest('.hit');
  if (!chosen) return;
  list.querySelectorAll('.hit').forEach(hit => hit.classList.toggle('chosen', hit === chosen));
  trigger('select', { id: chosen.dataset.id });
});
