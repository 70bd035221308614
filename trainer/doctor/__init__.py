"""What a machine has and lacks for training, for `cli doctor`.

machine.py  the report: Python, memory, disk, torch and its devices, packages
ascend.py   what an Ascend NPU needs: driver, CANN, a torch_npu that matches torch, ports of HCCL
finding.py  a line of the report; a Python of its own to ask
"""
