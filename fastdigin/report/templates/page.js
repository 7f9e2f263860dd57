// Enlarges a picture; the arrows step through the pictures of its job at the same place, which
// makes small changes visible as motion.
(() => {
  const box = document.querySelector('dialog');
  const image = box.querySelector('img');
  const label = box.querySelector('b');
  let shown = [];
  let at = 0;

  const show = index => {
    at = (index + shown.length) % shown.length;
    const source = shown[at].querySelector('img');
    image.src = source.src;
    image.alt = source.alt;
    label.textContent = shown[at].dataset.label;
  };

  document.addEventListener('click', event => {
    const zoom = event.target.closest('.zoom');
    if (zoom) {
      shown = [...zoom.closest('.pictures').querySelectorAll('.zoom')];
      show(shown.indexOf(zoom));
      box.showModal();
    } else if (event.target.dataset.step) {
      show(at + Number(event.target.dataset.step));
    } else if (event.target === box || event.target.dataset.close !== undefined) {
      box.close();
    }
  });

  box.addEventListener('keydown', event => {
    if (event.key === 'ArrowLeft') show(at - 1);
    if (event.key === 'ArrowRight') show(at + 1);
  });
})();
