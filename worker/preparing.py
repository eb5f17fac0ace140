"""From a job to a sequence for the engine: everything that needs no GPU, done in the job's own thread."""

from __future__ import annotations

import redis

from erase.engine import SamplingParams, Sequence
from erase.errors import InputError
from erase.models.loading import LoadedModel
from erase.models.prompt import Turn, prepare_chat, prepare_images, question_turns
from worker.contract import EventType, JobRequest, Plan, TokenPayload
from worker.errors import BadConversationError, BadImageError
from worker.images import decode_image, fetch_image
from worker.ledger import Job, read_events
from worker.policies import method_of


def prepare_sequence(
    client: redis.Redis, loaded: LoadedModel, job: Job, plan: Plan, *, deadline: float, tries: int
) -> Sequence:
    """Fetch, decode and resize the images, run stage 1, lay out tokens and positions.

    `deadline` is in `time.monotonic()` seconds; `tries` counts the attempts on the job so far, this one included.

    Raises:
        JobError: an image is gone or cannot be used, the model does not take the conversation, or the plan is of
            another version.
    """
    request, options = job.request, job.request.generation
    pictures = [decode_image(fetch_image(client, image), image) for image in request.images]
    method = method_of(plan)
    try:
        images = prepare_images(loaded, pictures, method.image_scale)
    except InputError as error:
        raise BadImageError(str(error)) from None
    try:
        prompt = prepare_chat(loaded, _turns(request), images)
    except InputError:
        raise BadConversationError("The model's chat template does not take these messages in this order.") from None
    return Sequence(
        id=job.id,
        prompt=prompt,
        method=method,
        preselection=method.preselect([image.pixels for image in images]),
        sampling=SamplingParams(
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=plan.seed,
            stop=options.stop,
        ),
        deadline=deadline,
        attempt=tries,
        forced_prefix=_emitted(client, job),
        priority=job.priority.value,
    )


def _turns(request: JobRequest) -> tuple[Turn, ...]:
    if not request.messages:
        return question_turns(request.prompt, len(request.images))
    return tuple(
        Turn(message.role, tuple(part if isinstance(part, str) else None for part in message.content))
        for message in request.messages
    )


def _emitted(client: redis.Redis, job: Job) -> tuple[int, ...]:
    """Tokens that earlier attempts emitted."""
    if job.last_event == 0:
        return ()
    tokens = [event for event in read_events(client, job.id) if event.type == EventType.TOKEN]
    return tuple(token for event in tokens for token in TokenPayload.model_validate_json(event.data).ids)
