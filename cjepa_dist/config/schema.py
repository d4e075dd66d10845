"""The config of training: every key with its default, meaning, unit and allowed values.

    argv ──> parse(TrainAloe, argv) ──> TrainAloe(...) ──> main(config) ──> exit code
             --help                     UserError ───────> one line on stderr, exit code 2

Every field is made by `option(default, meaning, unit)`, so `--help` can list it. Entry points that
do not train have their schema in their own module.
"""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from cjepa_dist.config.fields import MAX_SEED, option
from cjepa_dist.config.plugins import PLUGINS_MEANING

# Graph estimators, and rows of `evaluate_graph`, in this order: first those that use the predictor,
# then baselines and controls from the ground truth. `causal.graph.register_estimator` adds to it.
GRAPH_ESTIMATORS = [
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
]
INTERVENTIONS = ("hide", "empty", "swap", "close")
ENGINES = ("auto", "ddp", "fsdp2", "zero1", "zero2", "zero3")
PRECISIONS = ("auto", "bf16", "fp32")
READING_KINDS = ("in_memory", "device", "streaming")


@dataclass
class PredictorConfig:
    """C-JEPA. The defaults are the released layout; configs/world_model/ has faster learners."""

    slots: int = option(7, "object slots a frame", unit="slots", least=1)
    slot_dim: int = option(128, "dimensions of a slot", least=1)
    history_frames: int = option(3, "T_h, observed frames", unit="frames", least=1)
    pred_frames: int = option(1, "T_p, predicted frames", unit="frames", least=1)
    width: int = option(
        0,
        "transformer width; 0 = slot_dim, without a projection (released layout)",
        least=0,
    )
    depth: int = option(6, "transformer layers", unit="layers", least=1)
    heads: int = option(16, "attention heads", least=1)
    mlp_dim: int = option(2048, "hidden width of the feed-forward blocks", least=1)
    dropout: float = option(0.1, "dropout probability in training", least=0.0, most=1.0)
    norm_first: bool = option(
        False, "LayerNorm before attention too (the released layout has none)"
    )
    predict_change: bool = option(
        False, "output = last visible slot + predicted change; the head starts at zero"
    )
    last_anchor: bool = option(False, "add Linear(last visible slot) to future queries")
    anchor_all: bool = option(
        False, "add Linear(slot at t = 0) to every token, not only to queries"
    )
    rotary: bool = option(False, "rotary embedding of the frame number, besides the learned one")
    own_slot_only: bool = option(
        False, "a slot attends only to itself over time: the baseline without interactions"
    )


@dataclass
class MaskConfig:
    """The slots whose history is hidden."""

    mode: str = option(
        "sample",
        "hidden slots are drawn once (the released set), for each batch, or for each sample",
        choices=("fixed", "batch", "sample"),
    )
    probs: list[float] = option(
        [0.7, 0.2, 0.1],
        "probabilities of hiding 0, 1, 2, ... slots; [0,0,1] always hides two",
        least=0.0,
        most=1.0,
    )


@dataclass
class GraphConfig:
    """Who influences whom: the estimator of the adjacency matrix A."""

    estimator: str = option("interventional", "graph estimator", choices=GRAPH_ESTIMATORS)
    intervention: str = option(
        "empty",
        "interventional: hide slot j's history, replace it by the empty slot or another object,"
        " or close its column of attention",
        choices=INTERVENTIONS,
    )
    projections: int = option(4, "gradient: random projections of a slot's prediction", least=1)
    threshold: float = option(0.15, "published: a score below it means no interaction", least=0.0)
    tau: float = option(
        0.0,
        "score at which A = 0.5; 0 = the estimator's own"
        " (interventional, gradient: the predictor's running median residual)",
        least=0.0,
    )


@dataclass
class TermConfig:
    """One term of the loss."""

    weight: float = option(0.0, "final weight; 0 leaves the term out", least=0.0)
    start: float = option(0.0, "when the term starts", unit="share of steps", least=0.0, most=1.0)
    ramp: float = option(
        0.05,
        "how long the weight grows from 0 to its final value",
        unit="share of steps",
        least=0.0,
        most=1.0,
    )


@dataclass
class InvarianceConfig(TermConfig):
    """Taking out a slot that influences nobody leaves the predictions of the others unchanged."""

    intervention: str = option(
        "hide",
        "per_sample: what takes the slot out, its history hidden, emptied, that of another object,"
        " or attended by nobody",
        choices=INTERVENTIONS,
    )
    target: str = option(
        "clean",
        "per_sample: what is held to what; the prediction without the slot to that with it"
        " (clean) or to the truth, or the prediction with the slot to that without it (removed)",
        choices=("clean", "truth", "removed"),
    )


@dataclass
class SufficiencyConfig(TermConfig):
    """A slot is predicted as well from its causal neighbours as from all slots."""

    intervention: str = option(
        "hide",
        "per_sample: what takes the other slots out, their history hidden, emptied, or attended by"
        " nobody",
        choices=("hide", "empty", "close"),
    )


@dataclass
class ConsistencyConfig(TermConfig):
    """Rollouts of k predictions against the truth. The k of `steps` start in turn, `ramp` apart."""

    steps: list[int] = option(
        [1, 2, 4, 6],
        "rollout lengths k that are compared, weighted 1/k",
        unit="predictions",
        least=1,
    )


@dataclass
class CttConfig:
    """Causal Transformation Theory: invariance, sufficiency and consistency losses."""

    kind: str = option(
        "per_sample",
        "the released losses (published), or the corrected ones with a graph for each sample",
        choices=("published", "per_sample"),
    )
    invariance: InvarianceConfig = option(
        InvarianceConfig, "without a slot that influences nobody, the others are predicted the same"
    )
    sufficiency: SufficiencyConfig = option(
        SufficiencyConfig, "a slot is predicted as well from its causal neighbours as from all"
    )
    consistency: ConsistencyConfig = option(
        ConsistencyConfig, "rollouts stay close to the truth; needs horizon >= the largest step"
    )
    graph: GraphConfig = option(GraphConfig, "the graph that invariance and sufficiency use")
    fraction: float = option(
        1.0,
        "share of each batch on which the terms are computed, at even distances",
        unit="share",
        least=0.0,
        most=1.0,
    )
    margin: float = option(
        0.02, "per_sample: error that both terms allow", unit="residual variances", least=0.0
    )


@dataclass
class OptimizerConfig:
    """Optimizer, learning rate schedule and running mean of the weights."""

    name: str = option(
        "adamw",
        "muon: Muon for the matrices of transformer blocks, AdamW for all else",
        choices=("adamw", "adam", "muon"),
    )
    lr: float = option(5e-4, "peak learning rate", least=0.0, most=1e3)
    weight_decay: float = option(0.01, "decoupled weight decay", least=0.0)
    schedule: str = option(
        "constant", "learning rate after warm-up", choices=("constant", "cosine")
    )
    warmup_ratio: float = option(
        0.0,
        "length of the linear warm-up",
        unit="share of steps",
        least=0.0,
        most=1.0,
    )
    min_lr_ratio: float = option(
        0.0,
        "learning rate at the start of warm-up and the end of cosine",
        unit="share of lr",
        least=0.0,
        most=1.0,
    )
    max_grad_norm: float = option(0.0, "clip gradients to this norm; 0 = off", least=0.0)
    ema_decay: float = option(
        0.0,
        "decay of an exponential moving average of the weights, which is then validated and"
        " evaluated; 0 = off",
        least=0.0,
        most=1.0,
    )


@dataclass
class LoopConfig:
    """The training loop: length, batch size, parallelism, logging and checkpoints."""

    epochs: float = option(
        30.0, "length of the run if steps is 0", unit="epochs", least=0.0, most=1e6
    )
    steps: int = option(0, "length of the run; 0 = by epochs", unit="steps", least=0)
    global_batch_size: int = option(
        256, "samples a step, over all processes and accumulated passes", unit="samples", least=1
    )
    gradient_accumulation: int = option(1, "forward and backward passes a step", least=1)
    num_processes: int = option(
        0, "error if another number of processes is running; 0 = any number", least=0
    )
    engine: str = option(
        "auto",
        "how processes share weights and optimizer state: replicated (ddp) or sharded;"
        " auto = as launched",
        choices=ENGINES,
    )
    precision: str = option(
        "auto",
        "autocast of the forward pass; auto = bf16 if the device supports it, else fp32",
        choices=PRECISIONS,
    )
    cuda_graph: bool = option(
        True, "one process on a GPU: record the kernels of a step as a CUDA graph and replay it"
    )
    replica_check_every: int = option(
        0,
        "steps between checks that replicated state is equal on all processes; 0 = never",
        unit="steps",
        least=0,
    )
    log_every: int = option(50, "steps between logged metrics", unit="steps", least=1)
    eval_every: int = option(
        0, "steps between validations; 0 = only at the end", unit="steps", least=0
    )
    checkpoint_every: int = option(
        500, "steps between checkpoints; the last step always has one", unit="steps", least=1
    )
    checkpoint_every_minutes: float = option(
        0.0,
        "time between checkpoints, besides checkpoint_every; 0 = off",
        unit="minutes",
        least=0.0,
        most=1e6,
    )
    async_checkpoints: bool = option(
        True, "write checkpoints in the background; a step waits only for a copy in memory"
    )
    keep_checkpoints: int = option(2, "newest checkpoints to keep", least=1)
    keep_best: bool = option(
        False,
        "also keep the checkpoint with the lowest validation loss; checkpoints/best.json names it",
    )
    max_skipped_steps: int = option(
        10,
        "steps skipped for a loss or gradient that is not finite; one more is an error",
        unit="steps",
        least=0,
    )
    hang_timeout_minutes: float = option(
        30.0,
        "if no step ends in this time, write all stacks and end the process; 0 = never",
        unit="minutes",
        least=0.0,
        most=1e6,
    )
    profile: bool = option(
        False, "write a torch profiler trace of some steps after warm-up to RUN/profile"
    )
    stop_at_step: int = option(
        0,
        "write a checkpoint after this step and stop, as after a preemption signal; 0 = off",
        unit="steps",
        least=0,
    )


@dataclass
class ReadingConfig:
    """How the train split is read."""

    kind: str = option(
        "in_memory",
        "the whole split in host memory or on the GPU (device; world models only), or a few"
        " shards at a time (streaming)",
        choices=READING_KINDS,
    )
    shuffle_shards: int = option(
        2,
        "streaming: shards that are shuffled together; twice as many are in memory",
        unit="shards",
        least=1,
    )
    shard_groups: int = option(
        1,
        "streaming: groups of shards that are read side by side; with as many processes, each"
        " process reads one group only",
        least=1,
    )
    workers: int = option(2, "streaming: threads that read", unit="threads", least=1, most=4096)
    max_missing_samples: int = option(
        0,
        "streaming: samples of unreadable shards that are replaced by others; one more is an error",
        unit="samples",
        least=0,
    )
    timeout: float = option(
        30.0,
        "streaming, URLs: a read that receives no byte in this time has failed",
        unit="seconds",
        least=0.1,
        most=1e6,
    )
    max_attempts: int = option(
        6, "streaming, URLs: failed attempts in a row before it is an error", least=1
    )


@dataclass
class TrainWorldModel:
    """Train C-JEPA, with or without CTT losses, on slot shards."""

    data: str = option(
        MISSING,
        "folder of slot shards, or its URL: http(s)://, s3://, pipe:COMMAND",
        path=True,
    )
    run: str = option(
        MISSING, "run directory: config, checkpoints, metrics, TensorBoard", path=True
    )
    plugins: list[str] = option([], PLUGINS_MEANING)
    seed: int = option(
        0, "seed of weights, order of samples, masks and dropout", least=0, most=MAX_SEED
    )
    frameskip: int = option(5, "video frames between model frames", unit="frames", least=1)
    train_split: str = option("train", "split to train on")
    val_split: str = option("val", "split to validate on")
    videos: int = option(
        0, "train on the first N videos of the train split; 0 = all", unit="videos", least=0
    )
    contact_share: float = option(
        0.0,
        "share of windows with a contact in the predicted frames (needs truth); 0 = as in the data",
        least=0.0,
        most=1.0,
    )
    val_windows: int = option(
        2048, "windows of the validation split in each validation", unit="windows", least=1
    )
    horizon: int = option(
        1,
        "length of a training window after its history, in predictions of T_p frames; the same in"
        " runs that are compared",
        least=1,
    )
    future_weight: float = option(1.0, "weight of the error on future slots", least=0.0)
    history_weight: float = option(1.0, "weight of the error on hidden history slots", least=0.0)
    extra_losses: dict[str, float] = option(
        {},
        "weights of losses that a plugin registers, by name (cjepa_dist/losses/extra.py)",
        least=-1e9,
    )
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
    slot_dim: int = option(128, "dimensions of a slot", least=1)
    frames: int = option(25, "frames sampled from a video", unit="frames", least=1)
    width: int = option(144, "transformer width", least=1)
    depth: int = option(12, "transformer layers", unit="layers", least=1)
    heads: int = option(8, "attention heads", least=1)
    mlp_dim: int = option(512, "hidden width of the feed-forward blocks", least=1)
    word_dim: int = option(14, "width of the word embedding", least=1)
    head_dim: int = option(128, "hidden width of the two answer heads", least=1)
    shared_vision: bool = option(
        False,
        "slots do not attend to words, so a video is encoded once for all of its questions",
    )
    factored_position: bool = option(
        False,
        "add an embedding of the frame and one of the slot number to the position embedding",
    )
    dropout: float = option(0.1, "dropout probability in training", least=0.0, most=1.0)


@dataclass
class TrainAloe:
    """Train ALOE, visual question answering, on rolled-out slot shards."""

    data: str = option(
        MISSING,
        "folder of rolled-out slot shards with questions, or its URL: http(s)://, s3://,"
        " pipe:COMMAND",
        path=True,
    )
    run: str = option(
        MISSING, "run directory: config, checkpoints, metrics, TensorBoard", path=True
    )
    plugins: list[str] = option([], PLUGINS_MEANING)
    seed: int = option(
        0, "seed of weights, order of samples, first frames and dropout", least=0, most=MAX_SEED
    )
    train_split: str = option("train", "split to train on")
    val_split: str = option("val", "split to validate on")
    stride: int = option(5, "video frames between sampled frames", unit="frames", least=1)
    starts: int = option(
        8, "in training, the first frame is drawn from 0 .. starts-1", unit="frames", least=1
    )
    eval_start: int = option(3, "first frame in validation", unit="frames", least=0)
    group_by_video: bool = option(
        False,
        "a sample is a video with all of its questions, not a question"
        " (loop.global_batch_size then counts videos)",
    )
    question_types: list[str] = option(
        ["descriptive", "explanatory", "predictive", "counterfactual"],
        "question types to train on; a subset needs group_by_video",
    )
    shuffle_slots: bool = option(False, "shuffle the slots of a video each time in training")
    unnegated_fraction: float = option(
        0.0,
        'share of the run, at its start, in which negated questions have no "not" and the opposite'
        " answers: easier questions first",
        least=0.0,
        most=1.0,
    )
    protocol: str = option(
        "published",
        "input of counterfactual questions: the video, as in published systems (published), or the"
        " world without the object, from worlds.npz (counterfactual)",
        choices=("published", "counterfactual"),
    )
    blind: bool = option(
        False, "control: every question sees the slots of another video; not for streaming"
    )
    descriptive_weight: float = option(
        1.0, "weight of the cross-entropy of descriptive questions", least=0.0
    )
    choice_weight: float = option(1.0, "weight of the binary cross-entropy of choices", least=0.0)
    reading: ReadingConfig = option(
        ReadingConfig, "how the train split is read; the validation split is always in memory"
    )
    aloe: AloeConfig = option(AloeConfig, "the model")
    optimizer: OptimizerConfig = option(OptimizerConfig, "optimizer and learning rate")
    loop: LoopConfig = option(LoopConfig, "training loop")


TrainConfig = TrainWorldModel | TrainAloe
