#! /usr/bin/env bash
LR=1e-4
NUM_GPUS=4
MAX_SEQ_LEN=2048
DEV_BATCH_SIZE=16
BASE_MODEL_PATH=THUDM/chatglm3-6b

torchrun --standalone --nnodes=1 --nproc_per_node=$NUM_GPUS finetune.py \
    --train_format multi-turn \
    --train_file formatted_data/tool_alpaca.jsonl \
    --max_seq_length $MAX_SEQ_LEN \
    --model_name_or_path $BASE_MODEL_PATH \
    --output_dir output \
    --per_device_train_batch_size $DEV_BATCH_SIZE \
    --max_steps 200 \
    --logging_steps 1 \
    --save_steps 50 \
    --fp16 \
    --deepspeed configs/deepspeed.json \
    --resume_from_checkpoint True
