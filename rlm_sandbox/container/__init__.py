"""Everything that touches the container engine: image, run profile, input, launch, attach, clean-up and self-check."""
