"""What each callback, logger and flag of a trainer file means here: always done, without meaning, or not built."""

from collections.abc import Mapping

ALWAYS: Mapping[str, str] = {
    "CheckLoss": "a step whose gradient is NaN or Inf is skipped and recorded",
    "NaNChecker": "a step whose gradient is NaN or Inf is skipped and recorded",
    "ComputeNorm": "every record has the gradient's norm",
    "LogOptimizerParamGroup": "every record has the learning rate",
    "RateProfiler": "every record has tokens and seconds",
    "DurationProfiler": "every record has its seconds",
    "CountParams": "the forecast counts them",
    "ModelEvalMetrics": "perplexity is exp(validation loss)",
    "SamplesStreamedInfo": "the position in the data is a function of the step",
    "ProgressLogger": "there is always one",
}
"""Callbacks and loggers whose result is there without being asked for."""

NO_MEANING: Mapping[str, str] = {
    "KeepNCheckpoints": "there is one checkpoint, the run's own state",
    "SaveCheckpointState": "there is one checkpoint, the run's own state",
    "LoadCheckpointStates": "says what to take from a checkpoint, and none is named",
    "WeightCompression": "concerns the link to the wafer",
    "DebugArgsPath": "concerns the wafer",
    "ModelZooParamsMetadata": "the run's folder has its configuration",
    "DumpAvailableTensorNames": "concerns the wafer",
    "LogInputSummaries": "the data can be looked at directly",
    "Profiler": "every record says where time went",
    "OpProfiler": "every record says where time went",
    "SavePerformanceData": "events.jsonl has it",
    "FlopUtilization": "concerns the wafer",
    "EmailNotification": "nothing is sent from here",
    "SlackNotification": "nothing is sent from here",
    "HFCacheDir": "nothing is downloaded here",
    "TelemetryLogger": "nothing is sent from here",
}
"""Accepted, named once."""

LACKING: Mapping[str, str] = {
    "Lora": "LoRA from a trainer file",
    "SelectiveGrad": "selective gradients",
    "EleutherEvalHarness": "lm-eval during training",
    "BigCodeEvalHarness": "bigcode-eval during training",
    "ComputeNormGNS": "the gradient noise scale from per-example norms",
    "SkipSamples": "skipping samples",
    "SummaryTensorListener": "summaries of tensors",
    "NormTensorListener": "norms of tensors",
    "DumpActivations": "writing activations",
    "WandbLogger": "Weights & Biases",
}
"""Refused by name."""

# GlobalFlags, ScopedTrainFlags, ScopedValidateFlags are read for this one; every other flag is the wafer's own.
MICRO_BATCH_FLAG = "csx.performance.micro_batch_size"
FLAG_CALLBACKS = ("GlobalFlags", "ScopedTrainFlags", "ScopedValidateFlags")

# Options of ModelZoo's optimizers that torch's have under the same name and formula; the rest is refused.
OPTIMIZERS: Mapping[str, tuple[str, tuple[str, ...], Mapping[str, object]]] = {
    "adamw": ("adamw", ("betas", "eps", "weight_decay"), {"betas": [0.9, 0.999], "eps": 1e-6, "weight_decay": 0.0}),
    "adam": ("adam", ("betas", "eps", "weight_decay"), {"betas": [0.9, 0.999], "eps": 1e-6, "weight_decay": 0.0}),
    "sgd": ("sgd", ("momentum", "weight_decay"), {"momentum": 0.0, "weight_decay": 0.0}),
    "lion": ("lion", ("betas", "weight_decay"), {"betas": [0.9, 0.99], "weight_decay": 0.0}),
}
"""By lower-case name: our name, options taken over, ModelZoo's defaults (cerebras_pytorch 2.10)."""

# Options that torch has not, with the value at which they change nothing.
OPTIMIZER_OFF: Mapping[str, object] = {
    "correct_bias": True,
    "amsgrad": False,
    "dampening": 0.0,
    "nesterov": False,
    "maximize": False,
}
