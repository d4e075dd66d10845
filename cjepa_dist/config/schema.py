"""The only schema: dataclasses <- CONFIG.yaml <- key=value, merged and typed by OmegaConf.

    argv ──> parse(Schema, argv) ──> Schema instance ──> main(config) ──> exit code
             --help                  UserError ────────> one line on stderr, exit code 2

Every field is made by `option(default, meaning, unit)`, so `--help` can list it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from omegaconf import MISSING

from cjepa_dist.config.fields import option

Schema = TypeVar("Schema")


# ---------------------------------------------------------------------------------------------------------------------
# Sections shared by entry points. A section used by one entry point alone stands with that entry point's schema below.


@dataclass
class PredictorConfig:
    """C-JEPA. The defaults are the released layout (parity); `configs/world_model/` holds the ones that learn faster."""

    slots: int = option(7, "object slots a frame", unit="slots", least=1)
    slot_dim: int = option(128, "numbers a slot", least=1)
    history_frames: int = option(3, "T_h, observed frames", unit="frames", least=1)
    pred_frames: int = option(1, "T_p, predicted frames", unit="frames", least=1)
    width: int = option(
        0, "transformer width; 0 takes slot_dim and adds no projection (released layout)"
    )
    depth: int = option(6, "transformer layers", unit="layers", least=1)
    heads: int = option(16, "attention heads", least=1)
    mlp_dim: int = option(2048, "hidden width of the feed-forward blocks", least=1)
    dropout: float = option(0.1, "dropout probability in training", least=0.0)
    norm_first: bool = option(
        False, "LayerNorm before attention too (the released layout has none)"
    )
    predict_change: bool = option(
        False, "output = last visible slot + change, head initialised to zero"
    )
    last_anchor: bool = option(False, "future queries also get Linear(last visible slot)")
    anchor_all: bool = option(False, "every token, not only queries, gets Linear(slot at t = 0)")
    rotary: bool = option(False, "rotary embedding of the frame number in queries and keys too")
    own_slot_only: bool = option(
        False, "attention within a slot only: the baseline that sees no other object"
    )


@dataclass
class MaskConfig:
    """Which slots' history is hidden."""

    mode: str = option("sample", "draw of the hidden set", choices=("fixed", "batch", "sample"))
    probs: list[float] = option(
        [0.7, 0.2, 0.1], "probability of hiding 0, 1, 2, ... slots; 0,0,1 hides two always"
    )


# The names of `causal.graph.ESTIMATORS`, and rows of `evaluate_graph`, in this order. First those that read the predictor, then distances
# and controls, which read the simulator's truth.
GRAPH_ESTIMATORS = (
    "published",
    "attention",
    "attention_rollout",
    "gradient",
    "interventional",
    "distance",
    "extrapolated_distance",
    "oracle",
    "shuffled",
    "full",
    "empty",
)

ENGINES = ("auto", "ddp", "fsdp2", "zero1", "zero2", "zero3")

PRECISIONS = ("auto", "bf16", "fp32")

READING = ("in_memory", "device", "streaming")

INTERVENTIONS = ("hide", "empty", "swap")


@dataclass
class GraphConfig:
    """Who influences whom: the estimator of the adjacency."""

    estimator: str = option("interventional", "estimator of the graph", choices=GRAPH_ESTIMATORS)
    intervention: str = option("empty", "what do(j) does to slot j", choices=INTERVENTIONS)
    projections: int = option(4, "gradient: random projections of a slot's prediction", least=1)
    threshold: float = option(0.15, "published: an entry below it is 'not interacting'", least=0.0)
    tau: float = option(
        0.0,
        "score at which A = 0.5; 0 = the predictor's running median residual (interventional, gradient)",
        least=0.0,
    )


@dataclass
class TermConfig:
    """One term of the loss."""

    weight: float = option(0.0, "weight at full strength; 0 leaves the term out", least=0.0)
    start: float = option(
        0.0, "part of the run after which the term begins", unit="share of steps", least=0.0
    )
    ramp: float = option(
        0.05, "part of the run over which the weight grows from 0", unit="share of steps", least=0.0
    )


@dataclass
class ConsistencyConfig(TermConfig):
    """Several predictions in a row against the truth. The k of `steps` join one after another, each over `ramp`."""

    steps: list[int] = option(
        [1, 2, 4, 6],
        "numbers of predictions in a row that are compared, weighted 1/k",
        unit="predictions",
    )


@dataclass
class CttConfig:
    """Causal Transformation Theory: invariance, sufficiency, consistency over several steps."""

    kind: str = option(
        "per_sample",
        "the released losses, or the corrected ones",
        choices=("published", "per_sample"),
    )
    invariance: TermConfig = option(
        TermConfig, "hiding a slot that does not interact changes nothing for the others"
    )
    sufficiency: TermConfig = option(TermConfig, "a slot's causal neighbourhood alone predicts it")
    consistency: ConsistencyConfig = option(
        ConsistencyConfig, "predictions from predictions stay true; needs horizon >= its last step"
    )
    graph: GraphConfig = option(GraphConfig, "the graph that invariance and sufficiency use")
    fraction: float = option(
        1.0,
        "part of each batch on which the terms are computed, spread evenly over it",
        unit="share",
        least=0.0,
    )
    margin: float = option(
        0.02, "slack of both per_sample terms", unit="residual variances", least=0.0
    )


@dataclass
class OptimizerConfig:
    """Update rule and learning rate, the latter a function of the step."""

    name: str = option(
        "adamw",
        "adamw, adam, or muon on the matrices with adamw on the rest",
        choices=("adamw", "adam", "muon"),
    )
    lr: float = option(5e-4, "peak learning rate", least=0.0)
    weight_decay: float = option(0.01, "decoupled weight decay", least=0.0)
    schedule: str = option("constant", "after warm-up", choices=("constant", "cosine"))
    warmup_ratio: float = option(0.0, "linear warm-up", unit="share of steps", least=0.0)
    min_lr_ratio: float = option(
        0.0, "learning rate at start of warm-up and end of cosine", unit="share of lr", least=0.0
    )
    max_grad_norm: float = option(
        0.0, "gradient norm above which it is scaled down; 0 = off", least=0.0
    )
    ema_decay: float = option(
        0.0,
        "decay of a running mean of the weights, which is what is validated and measured; 0 = off",
        least=0.0,
    )


@dataclass
class LoopConfig:
    """The training loop: how long, how much at once, what is written when."""

    epochs: float = option(30.0, "length of the run when steps is 0", unit="epochs", least=0.0)
    steps: int = option(0, "length of the run; 0 takes epochs", unit="steps", least=0)
    global_batch_size: int = option(
        256, "samples a step over all processes and accumulation", unit="samples", least=1
    )
    gradient_accumulation: int = option(1, "forward passes a step", least=1)
    num_processes: int = option(
        0,
        "processes that must be running, else an error; 0 = as many as the launcher starts",
        least=0,
    )
    engine: str = option(
        "auto",
        "what processes share: nothing (ddp) or weights and optimizer; auto = as launched",
        choices=ENGINES,
    )
    precision: str = option(
        "auto",
        "autocast of the forward pass; auto = bf16 where the device has it, else fp32",
        choices=PRECISIONS,
    )
    cuda_graph: bool = option(
        True,
        "one process on a GPU: a step's launches are recorded once and replayed as one (a CUDA graph)",
    )
    replica_check_every: int = option(
        0,
        "steps between comparisons of what processes hold alike; 0 = never",
        unit="steps",
        least=0,
    )
    log_every: int = option(50, "steps between lines of metrics", unit="steps", least=1)
    eval_every: int = option(
        0, "steps between validations; 0 = only at the end", unit="steps", least=0
    )
    checkpoint_every: int = option(
        500, "steps between checkpoints; one is always written at the end", unit="steps", least=1
    )
    checkpoint_every_minutes: float = option(
        0.0, "a checkpoint also after so much time; 0 = off", unit="minutes", least=0.0
    )
    async_checkpoints: bool = option(
        True,
        "write checkpoints beside the steps that follow; a step waits for a copy in memory alone",
    )
    keep_checkpoints: int = option(2, "checkpoints kept, the newest", least=1)
    keep_best: bool = option(
        False,
        "keep the checkpoint with the best validation loss too; checkpoints/best.json names it",
    )
    max_skipped_steps: int = option(
        10,
        "steps left out for a loss or gradient that is not finite; one more is an error",
        unit="steps",
        least=0,
    )
    hang_timeout_minutes: float = option(
        30.0,
        "no step in that time: write all stacks and end the process; 0 = never",
        unit="minutes",
        least=0.0,
    )
    profile: bool = option(
        False, "a torch profiler trace of some steps after warm-up, into RUN/profile"
    )
    stop_at_step: int = option(
        0,
        "leave after this step with a checkpoint, as a signal would; 0 = run to the end",
        unit="steps",
        least=0,
    )


@dataclass
class ReadingConfig:
    """How the train split is read."""

    kind: str = option(
        "in_memory",
        "the split in host memory, on the GPU (world models), or a few shards at a time",
        choices=READING,
    )
    shuffle_shards: int = option(
        2,
        "streaming: shards whose samples are mixed; twice as many are in memory",
        unit="shards",
        least=1,
    )
    shard_groups: int = option(
        1,
        "streaming: so many groups of shards at a time; with as many processes each reads its own alone",
        least=1,
    )
    workers: int = option(2, "streaming: threads that read", unit="threads", least=1)
    max_missing_samples: int = option(
        0,
        "streaming: samples of lost shards for which others stand in; one more is an error",
        unit="samples",
        least=0,
    )
    timeout: float = option(
        30.0,
        "streaming, URLs: a read without a byte in that time has failed",
        unit="seconds",
        least=0.1,
    )
    max_attempts: int = option(
        6, "streaming, URLs: failures in a row before it is an error", least=1
    )


@dataclass
class TrainWorldModel:
    """Train C-JEPA, with or without CTT losses, on slot shards."""

    data: str = option(
        MISSING, "folder of slot shards, or its URL: http(s)://, s3://, pipe:COMMAND"
    )
    run: str = option(MISSING, "run folder: config, checkpoints, metrics, TensorBoard")
    seed: int = option(0, "seed of weights, order, masks, dropout")
    frameskip: int = option(5, "video frames between model frames", unit="frames", least=1)
    train_split: str = option("train", "split to train on")
    val_split: str = option("val", "split to validate on")
    videos: int = option(
        0, "use the first so many videos of the train split; 0 = all", unit="videos", least=0
    )
    contact_share: float = option(
        0.0,
        "share of windows with a contact in the predicted interval (needs truth); 0 = as they come",
        least=0.0,
    )
    val_windows: int = option(
        2048, "windows of the validation split used in a validation", unit="windows", least=1
    )
    horizon: int = option(
        1,
        "predictions (of T_p frames each) that a training window has room for; runs that are compared need the same",
        least=1,
    )
    future_weight: float = option(1.0, "weight of the error on future slots", least=0.0)
    history_weight: float = option(1.0, "weight of the error on hidden history slots", least=0.0)
    reading: ReadingConfig = option(ReadingConfig, "how the train split is read")
    predictor: PredictorConfig = option(PredictorConfig, "the model")
    mask: MaskConfig = option(MaskConfig, "hidden slots")
    ctt: CttConfig = option(CttConfig, "causal terms")
    optimizer: OptimizerConfig = option(OptimizerConfig, "update rule")
    loop: LoopConfig = option(LoopConfig, "training loop")


@dataclass
class AloeConfig:
    """ALOE. The defaults are the published size (2.88 M parameters)."""

    slots: int = option(7, "object slots a frame", unit="slots", least=1)
    slot_dim: int = option(128, "numbers a slot", least=1)
    frames: int = option(25, "frames sampled from a video", unit="frames", least=1)
    width: int = option(144, "transformer width", least=1)
    depth: int = option(12, "transformer layers", unit="layers", least=1)
    heads: int = option(8, "attention heads", least=1)
    mlp_dim: int = option(512, "hidden width of the feed-forward blocks", least=1)
    word_dim: int = option(14, "width of the word embedding", least=1)
    head_dim: int = option(128, "hidden width of the two answer heads", least=1)
    shared_vision: bool = option(
        False,
        "slots do not attend to words, so that a video is computed once for all of its questions",
    )
    factored_position: bool = option(
        False,
        "add embeddings of frame and of slot number, drawn at random, to the table of positions",
    )
    dropout: float = option(0.1, "dropout probability in training", least=0.0)


@dataclass
class TrainAloe:
    """Train ALOE, visual question answering, on rolled-out slot shards."""

    data: str = option(
        MISSING,
        "folder of rolled-out slot shards with questions, or its URL: http(s)://, s3://, pipe:COMMAND",
    )
    run: str = option(MISSING, "run folder: config, checkpoints, metrics, TensorBoard")
    seed: int = option(0, "seed of weights, order, frame starts, dropout")
    train_split: str = option("train", "split to train on")
    val_split: str = option("val", "split to validate on")
    stride: int = option(5, "video frames between sampled frames", unit="frames", least=1)
    starts: int = option(
        8, "the first frame is drawn from 0 .. starts-1 in training", unit="frames", least=1
    )
    eval_start: int = option(3, "first frame in validation", unit="frames", least=0)
    by_video: bool = option(
        False,
        "a sample is a video with all of its questions (loop.global_batch_size counts videos), not a question",
    )
    types: list[str] = option(
        ["descriptive", "explanatory", "predictive", "counterfactual"],
        "types of the questions asked in training; fewer need by_video",
    )
    shuffle_slots: bool = option(
        False, "training shows the slots of a video in another order each time"
    )
    unnegated_fraction: float = option(
        0.0,
        'share of the run that asks negated questions without their "not", answers turned round: options are learned first',
        least=0.0,
    )
    protocol: str = option(
        "published",
        "what counterfactual questions see: the video, as published systems do, or the world without the object (worlds.npz)",
        choices=("published", "counterfactual"),
    )
    blind: bool = option(
        False, "control: every question sees the slots of another video; does not stream"
    )
    descriptive_weight: float = option(
        1.0, "weight of the cross-entropy of descriptive questions", least=0.0
    )
    choice_weight: float = option(1.0, "weight of the binary cross-entropy of choices", least=0.0)
    reading: ReadingConfig = option(
        ReadingConfig, "how the train split is read; the validation split is always in memory"
    )
    aloe: AloeConfig = option(AloeConfig, "the model")
    optimizer: OptimizerConfig = option(OptimizerConfig, "update rule")
    loop: LoopConfig = option(LoopConfig, "training loop")


TrainConfig = TrainWorldModel | TrainAloe
