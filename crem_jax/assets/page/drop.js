// Large pictures are made smaller here: the model looks at no more pixels anyway.
const SIDE = 1280, BYTES = 1 << 20;
const place = element.querySelector('.drop');
const file = element.querySelector('input');
const shown = element.querySelector('img');

const asUri = blob => new Promise((done, failed) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.onerror = failed;
  reader.readAsDataURL(blob);
});

const smaller = (whole, scale) => {
  const canvas = document.createElement('canvas');
  canvas.width = Math.max(1, Math.round(whole.width * scale));
  canvas.height = Math.max(1, Math.round(whole.height * scale));
  const pen = canvas.getContext('2d');
  pen.fillStyle = 'white';
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(whole, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL('image/jpeg', 0.92);
};

const set = uri => {
  shown.src = uri;
  place.classList.toggle('full', Boolean(uri));
  props.value = uri;
  trigger('input');
};

const take = async chosen => {
  if (!chosen || !chosen.type.startsWith('image/')) return;
  const whole = await createImageBitmap(chosen);
  const scale = Math.min(1, SIDE / Math.max(whole.width, whole.height));
  const known = /^image\/(png|jpeg|webp|gif|bmp)$/.test(chosen.type);
  const small = scale === 1 && chosen.size <= BYTES && known;
  set(small ? await asUri(chosen) : smaller(whole, scale));
};

const over = on => event => {
  event.preventDefault();
  place.classList.toggle('over', on);
};
place.addEventListener('dragover', over(true));
place.addEventListener('dragleave', over(false));
place.addEventListener('drop', event => {
  over(false)(event);
  take(event.dataTransfer.files[0]);
});
place.addEventListener('click', event => {
  if (event.target.closest('.clear')) set('');
  else if (event.target !== file) file.click();
});
place.addEventListener('keydown', event => {
  if (event.key === 'Enter' && event.target === place) file.click();
});
file.addEventListener('change', () => {
  take(file.files[0]);
  file.value = '';
});
