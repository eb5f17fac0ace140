"""Load for `POST /v1/ask` from Locust (pip install locust): bundled questions, wrong answers count as failures.

locust -f docs/examples/locustfile.py --headless --host http://127.0.0.1:8000 -u 8 -r 2 -t 40s
"""

import json
import random
from pathlib import Path

from locust import HttpUser, between, task

SAMPLES = Path(__file__).parents[2] / "erase" / "demo" / "samples"
QUESTIONS = [
    (entry["image"], (SAMPLES / entry["image"]).read_bytes(), turn["question"], turn["answer"])
    for entry in json.loads((SAMPLES / "samples.json").read_text())
    for turn in entry["turns"]
]


class Backend(HttpUser):
    """A backend that asks about once a second."""

    wait_time = between(0.5, 1.5)

    @task
    def ask(self) -> None:
        """One question; refusals (429, 503) are failures, too."""
        name, image, question, answer = random.choice(QUESTIONS)
        files, data = {"image": (name, image, "image/png")}, {"prompt": question}
        with self.client.post("/v1/ask", files=files, data=data, catch_response=True) as reply:
            if reply.status_code == 200 and reply.json()["answer"] != answer:
                reply.failure("a wrong answer")
