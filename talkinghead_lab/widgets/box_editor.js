// The speakers' boxes over the picture, in a notebook. `Boxes` stands before this text: see `box_editor.py`.

function render({ model, el }) {
  const stage = document.createElement("div");
  stage.className = "thl-boxes";
  el.append(stage);
  let boxes = null;

  function draw() {
    const [size, regions] = [model.get("size"), model.get("boxes")];
    stage.hidden = size.length === 0;
    if (stage.hidden) return;
    const numbers = Array.from({ length: Math.max(2, regions.length) }, (_, which) => which + 1);
    const picture = document.createElement("img");
    picture.alt = "The picture under the speakers' boxes";
    picture.src = model.get("picture");
    const shown = numbers.map((number) => {
      const box = document.createElement("button");
      Object.assign(box, { type: "button", className: "thl-box", textContent: number });
      box.ariaLabel = `Box of speaker ${number}: drag it, or use arrow keys; with Shift they resize`;
      return box;
    });
    stage.replaceChildren(picture, ...shown);
    const inputs = numbers.map(() => document.createElement("input")); // the form has a field for the numbers
    boxes = new Boxes(picture, shown, inputs, () => {
      model.set("boxes", boxes.edges);
      model.save_changes();
    });
    boxes.use(regions);
    boxes.show(size, true);
  }

  function follow() {
    const regions = model.get("boxes");
    if (boxes === null || regions.length > boxes.shown.length) draw();
    else boxes.use(regions);
  }

  model.on("change:picture", draw);
  model.on("change:boxes", follow);
  draw();
}

export default { render };
