# two cards
nproc_per_node=2

CUDA_VISIBLE_DEVICES=0,1 \
NPROC_PER_NODE=$nproc_per_node \
swift rlhf \
    --rlhf_type dpo \
    --model "Qwen/Qwen3-8B" \
    --tuner_type lora \
    --dataset 'hjh0119/shareAI-Llama3-DPO-zh-en-emoji#1000' \
    --torch_dtype bfloat16 \
    --target_modules all-linear \
    --system 'You are a helpful assistant.' \
    --gradient_accumulation_steps $((16 / nproc_per_node)) \
    --split_dataset_ratio 0.02 \
    --save_steps 50 \
    --save_total_limit -1 \
    --deepspeed zero3_offload
