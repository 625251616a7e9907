"""Generate text from an exported decoder with ONNX Runtime and numpy alone, greedily or from the k likeliest tokens.

`Decoder` is the part to copy: it runs a file of `topkast.export(..., use_cache=True)`. The first run takes the whole
prompts, and each later run takes one new token of each sequence, beside the keys and values of all tokens before it.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime

Choose = Callable[[np.ndarray], np.ndarray]  # logits [sequences, vocabulary] -> tokens [sequences]


def greedy(logits: np.ndarray) -> np.ndarray:
    """The likeliest token of each sequence."""
    return logits.argmax(axis=-1)


def top_k(k: int, temperature: float = 1.0, seed: int = 0) -> Choose:
    """A random choice among the `k` likeliest tokens, by their probabilities at this temperature."""
    generator = np.random.default_rng(seed)

    def choose(logits: np.ndarray) -> np.ndarray:
        likeliest = np.argpartition(logits, -k)[:, -k:]
        scores = np.take_along_axis(logits, likeliest, axis=-1) / temperature
        # The largest of scores with Gumbel noise is a draw from their softmax.
        drawn = (scores + generator.gumbel(size=scores.shape)).argmax(axis=-1, keepdims=True)
        return np.take_along_axis(likeliest, drawn, axis=-1)[:, 0]

    return choose


class Decoder:
    """A decoder in a file that takes and returns its key-value cache.

    Args:
        session: a session of the file. Files of the format "custom" need topkast's library for their speed.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.inputs = {value.name: value for value in session.get_inputs()}
        self.past = [name for name in self.inputs if name.startswith("past_key_values.")]
        self.outputs = ["logits", *(name.replace("past_key_values", "present") for name in self.past)]

    def generate(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, choose: Choose = greedy, end: int | None = None
    ) -> np.ndarray:
        """The tokens that follow each prompt, [prompts, new tokens].

        Args:
            prompts: the tokens of each prompt; lengths may differ.
            new_tokens: the largest number of new tokens.
            choose: gives the next tokens for the logits [prompts, vocabulary]: `greedy`, or a result of `top_k`.
            end: the token that ends a sequence, which is then filled with it; None if there is no such token.
        """
        longest = max(map(len, prompts))
        # Short prompts are filled on the left, so that the next token follows the last token of each of them.
        tokens = np.array([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = np.array([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        positions = (mask.cumsum(axis=1) - 1).clip(min=0)
        cache = [self._empty(name, len(prompts)) for name in self.past]
        found = list[np.ndarray]()
        while len(found) < new_tokens:
            arrays = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
            feeds = {
                name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
                for name, array in arrays.items()
                if name in self.inputs  # some models count positions by the mask
            }
            # The cache stays in ONNX Runtime's own values and is not copied.
            logits, *cache = self.session.run_with_ort_values(
                self.outputs, feeds | dict(zip(self.past, cache, strict=True))
            )
            chosen = choose(logits.numpy()[:, -1])
            if end is not None and found:
                chosen = np.where(found[-1] == end, end, chosen)
            found.append(chosen)
            if end is not None and (chosen == end).all():
                break
            tokens, positions = chosen[:, None], positions[:, -1:] + 1
            mask = np.concatenate([mask, np.ones_like(tokens)], axis=1)
        return np.stack(found, axis=1)

    def _empty(self, name: str, sequences: int) -> onnxruntime.OrtValue:
        """A cache of no token."""
        _, heads, _, size = self.inputs[name].shape
        dtype = np.float16 if self.inputs[name].type == "tensor(float16)" else np.float32
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((sequences, heads, 0, size), dtype))


def show(path: str, library: str, prompts: list[str], new_tokens: int) -> None:
    """Print the text that follows each prompt. Its tokens are its bytes. This runs in a process without torch."""
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library)
    decoder = Decoder(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
    for name, choose in (("greedy", greedy), ("the 3 likeliest", top_k(3))):
        found = decoder.generate([list(prompt.encode()) for prompt in prompts], new_tokens, choose)
        for prompt, tokens in zip(prompts, found, strict=True):
            print(f"{name}: {prompt}|{bytes(tokens.tolist()).decode()}")
    assert not {"torch", "transformers", "topkast"} & set(sys.modules)


SENTENCE = "a sparse decoder keeps the keys and values of the tokens that it has seen. "


def export_trained(path: str) -> None:
    """Train a small GPT-2 on one sentence, with 0.8 of its weights zero, and export it with its cache."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    import topkast

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=128, n_positions=128, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    topkast.compile(model, fwd=0.8, block=(4, 1), refresh_every=10, min_size=1000, backend="eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    text = torch.tensor(list((SENTENCE * 3).encode()))
    for _ in range(80):
        starts = torch.randint(len(SENTENCE), (16,))
        batch = torch.stack([text[start : start + len(SENTENCE)] for start in starts])
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    result = topkast.export(model, path, (batch[:2],), format="custom", use_cache=True)
    print(f"the file takes {', '.join(list(result.inputs)[:5])}, ...")


def main() -> None:
    import topkast

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/decoder.onnx"
        export_trained(path)
        prompts = [SENTENCE[:30], SENTENCE[9:30]]
        library = str(topkast.onnx.library_path())
        program = f"import runpy; runpy.run_path({__file__!r})['show']({path!r}, {library!r}, {prompts!r}, 40)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    print(done.stdout, end="")
    assert f"greedy: {prompts[0]}|{SENTENCE[30:70]}" in done.stdout
    assert f"greedy: {prompts[1]}|{SENTENCE[30:70]}" in done.stdout
    print("generated without torch")


if __name__ == "__main__":
    main()
