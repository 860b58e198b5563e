"""Answers from the chorus alone, with torch and transformers.

    python compressed_generation.py "What is this?" --image picture.png --k 4

A context (pictures, text) is read once together with the first k chorus tokens. Of its key/value
cache only those k entries are kept, so an answer costs the same after a thousand vision tokens as
after ten, and a kept chorus can be asked again and again. Works on any device and without
torchvision; needs torch, transformers and pillow.
"""

import argparse
import dataclasses
import inspect
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache


@dataclasses.dataclass
class Chorus:
    """A compressed context.

    entries: (keys, values), each [1, KV heads, k, head dim], one pair for each layer.
    position: where the question begins in M-RoPE positions, one past the chorus.
    """

    entries: list[tuple[torch.Tensor, torch.Tensor]]
    position: int


def load(directory=Path(__file__).parent, **kwargs):
    """The model and its processor; pictures are resized by Pillow, as in training."""
    model = AutoModelForImageTextToText.from_pretrained(directory, **kwargs).eval()
    return model, AutoProcessor.from_pretrained(directory, backend="pil")


@torch.inference_mode()
def compress(model, processor, images=(), text="", k=None):
    """Reads pictures and text, keeps k chorus tokens (all of them if None)."""
    k = k or model.config.crem["num_chorus"]
    content = [{"type": "image", "image": image} for image in images]
    content += [{"type": "text", "text": text}] if text else []
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        chorus=k,
        sanitize_control_tokens=True,  # special tokens in the text stay plain text
    ).to(model.device)
    last = model.config.crem["first_chorus_id"] + k - 1
    length = int((inputs["input_ids"][0] == last).nonzero()) + 1
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        inputs[name] = inputs[name][:, :length]  # the chorus closes the context
    places = ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw")
    places = {name: inputs[name] for name in places if name in inputs}
    position_ids, _ = model.model.get_rope_index(**places)
    cache = DynamicCache()
    model(**inputs, position_ids=position_ids, logits_to_keep=1, **_cache(model, cache))
    entries = [
        (layer.keys[:, :, -k:].clone(), layer.values[:, :, -k:].clone()) for layer in cache.layers
    ]
    return Chorus(entries, int(position_ids.max()) + 1)


@torch.inference_mode()
def answer(model, processor, chorus, question, max_new_tokens=64):
    """The most likely answer to a question about a compressed context, as token ids."""
    tokenizer, crem = processor.tokenizer, model.config.crem
    ends = model.generation_config.eos_token_id
    asked = tokenizer(question, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    asked += tokenizer("<|im_end|>\n<|im_start|>assistant\n", split_special_tokens=False)[
        "input_ids"
    ]
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(chorus.entries):
        cache.update(keys, values, layer)
    position, said = chorus.position, []
    tokens = torch.tensor([asked], device=model.device)
    while len(said) < max_new_tokens:
        length = tokens.shape[1]
        places = torch.arange(position, position + length, device=model.device)
        output = model(
            input_ids=tokens,
            position_ids=places.expand(3, 1, -1),  # time, height and width agree in text
            logits_to_keep=1,
            **_cache(model, cache),
        )
        logits = output.logits[0, -1]
        first = crem["first_chorus_id"]
        logits[first : first + crem["num_chorus"]] = -torch.inf  # the chorus is never said
        said.append(int(logits.argmax()))
        if said[-1] in ends:
            break
        position, tokens = position + length, torch.tensor([said[-1:]], device=model.device)
    return said


def _cache(model, cache):
    """The argument's name: "cache", which transformers before 5.24 called "past_key_values"."""
    named = "cache" in inspect.signature(model.forward).parameters
    return {"cache" if named else "past_key_values": cache, "use_cache": True}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question")
    parser.add_argument("--image", action="append", default=[], help="a picture; may be repeated")
    parser.add_argument("--text", default="", help="text to compress with the pictures")
    parser.add_argument("--k", type=int, help="chorus tokens to keep (default: all)")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    args = parser.parse_args()
    model, processor = load()
    chorus = compress(model, processor, args.image, args.text, args.k)
    said = answer(model, processor, chorus, args.question, args.max_new_tokens)
    print(processor.tokenizer.decode(said, skip_special_tokens=True))


if __name__ == "__main__":
    main()
