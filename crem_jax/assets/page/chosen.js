const place = element.querySelector('.chosen');
const show = () => {
  const { id, text, picture: source } = props.value;
  const parts = [make('b', '', text), make('span', '', id)];
  place.replaceChildren(...(source ? [picture(source, text)] : []), ...parts);
};
watch('value', show);
show();
