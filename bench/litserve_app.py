"""A LitServe server with dynamic batching around stock transformers `generate`: what its users write. For bench.rivals.

python litserve_app.py MODEL_FOLDER PORT
"""

from __future__ import annotations

import base64
import io
import sys
from typing import Any

import litserve
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

BATCH = 8
BATCH_TIMEOUT_S = 0.02


class Api(litserve.LitAPI):  # type: ignore[misc]
    """Batches whatever waits, up to `BATCH`, and answers it with one call of `generate`."""

    def __init__(self, model: str) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=BATCH_TIMEOUT_S)
        self._folder = model

    def setup(self, device: str) -> None:
        self._processor = AutoProcessor.from_pretrained(self._folder, padding_side="left")
        model = AutoModelForImageTextToText.from_pretrained(self._folder, dtype=torch.float32)
        self._model = model.eval().to(device)

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe would read an annotation
        image = Image.open(io.BytesIO(base64.b64decode(request["image"]))).convert("RGB")
        content = [{"type": "image"}, {"type": "text", "text": request["prompt"]}]
        text = self._processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return {"image": image, "text": text, "max_tokens": int(request["max_tokens"])}

    def predict(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        inputs = self._processor(
            text=[request["text"] for request in requests],
            images=[request["image"] for request in requests],
            padding=True,
            return_tensors="pt",
        ).to(self._model.device)
        longest = max(request["max_tokens"] for request in requests)
        with torch.inference_mode():
            output = self._model.generate(**inputs, max_new_tokens=longest, do_sample=False)
        answers = output[:, inputs["input_ids"].shape[1] :]
        texts = self._processor.batch_decode(answers, skip_special_tokens=True)
        return [{"answer": text, "tokens": len(answer)} for text, answer in zip(texts, answers, strict=True)]

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    server = litserve.LitServer(Api(sys.argv[1]), accelerator="cpu", timeout=600)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, num_api_servers=1)
