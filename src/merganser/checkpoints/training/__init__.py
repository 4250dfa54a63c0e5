"""What training frameworks save: verl and FSDP, DCP, DeepSpeed, Megatron."""
