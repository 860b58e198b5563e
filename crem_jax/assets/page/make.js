// Texts are set as texts and never parsed: they come from a library, from a model, from anyone.
const make = (tag, name, ...content) => {
  const made = document.createElement(tag);
  made.className = name;
  made.append(...content);
  return made;
};
const picture = (source, text) => {
  const image = make('img', '');
  image.src = source;
  image.alt = text;
  return image;
};
