const place = element.querySelector('.answer');
const show = () => {
  const { kind, title, meaning, text, error, facts, hidden } = props.value;
  place.className = `answer ${kind}`;
  place.hidden = hidden;
  const said = error ? make('em', '', error) : text;
  const fact = ({ amount, of }) => make('span', '', make('b', '', amount), ` ${of}`);
  place.replaceChildren(
    make('div', 'title', make('b', '', title), make('span', '', meaning)),
    make('div', 'said', said),
    make('div', 'facts', ...facts.map(fact)),
  );
};
watch('value', show);
show();
