"""The host's side of a program: load, launch, copy, as SdkRuntime."""
