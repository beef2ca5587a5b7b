"""The words of pages in Chinese; English is the key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

__all__ = ["LANGUAGES", "PageLanguage", "translator"]

PageLanguage = Literal["en", "zh"]
LANGUAGES: tuple[PageLanguage, ...] = ("en", "zh")

_CHINESE = {
    "Training report": "训练报告",
    "Comparison": "对比",
    "task": "任务",
    "base model": "基础模型",
    "method": "方法",
    "all weights": "全部权重",
    "updates": "更新次数",
    "tokens": "词元数",
    "time": "用时",
    "tokens per second": "每秒词元数",
    "peak memory": "内存峰值",
    "final training loss": "最终训练损失",
    "best validation loss": "最佳验证损失",
    "Curves": "曲线",
    "update": "更新",
    "loss (nats)": "损失（nat）",
    "training": "训练",
    "validation": "验证",
    "learning rate": "学习率",
    "gradient norm": "梯度范数",
    "Evaluation": "评测",
    "rows": "行",
    "metric": "指标",
    "value": "数值",
    "95% interval": "95% 置信区间",
    "baseline": "基线",
    "difference": "差值",
    "p-value": "p 值",
    "trivial answer": "平凡答案",
    "Examples": "示例",
    "Words that the other text lacks are marked.": "对方文本中没有的词语已标出。",
    "sorted by": "排序",
    "order of the data": "数据顺序",
    "largest gain": "提升最大",
    "largest loss": "下降最大",
    "reference": "参考答案",
    "tuned": "微调后",
    "row": "行",
    "gain": "提升",
    "What was learned": "学习的内容",
    "Tokens with a loss are marked; the rest is only read.": "参与损失计算的词元已标出，其余只作为输入。",
    "Data": "数据",
    "data": "数据",
    "part": "用途",
    "license": "许可证",
    "hash or commit": "哈希或提交",
    "not stated": "未注明",
    "Recipe and versions": "配方与版本",
    "version": "版本",
    "package": "软件包",
    "file": "文件",
    "run": "运行",
    "error": "错误",
    "all": "全部",
    "shown": "显示",
    "of": "共",
    "the rows with the largest gain and the largest loss": "提升最大和下降最大的行",
    "the first rows": "最前面的行",
    "paired test against": "配对检验，对照",
}


def translator(language: PageLanguage) -> Callable[[str], str]:
    """A function from the English words of a page to those of a language."""
    return (lambda text: text) if language == "en" else _CHINESE.__getitem__
