"""Word lists of the guard, as data: numbers, negations and opposites in English and Chinese."""

from __future__ import annotations

import re


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """`hot/cold wet/dry` as pairs."""
    return tuple((left, right) for left, _, right in (pair.partition("/") for pair in text.split()))


_COUNTED = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty"""
NUMBER_WORDS = {word: str(value) for value, word in enumerate(_COUNTED.split())} | {
    "half": "0.5",
    "hundred": "100",
    "thousand": "1000",
    "million": "1000000",
    "billion": "1000000000",
}

NUMERALS_ZH = {
    "零": "0",
    "兩": "2",
    "两": "2",
    "百": "100",
    "千": "1000",
    "萬": "10000",
    "万": "10000",
    "半": "0.5",
} | {numeral: str(value) for value, numeral in enumerate("二三四五六七八九十", start=2)}
"""Without 一, which mostly is no number (一下, 一些)."""
NO_NUMERAL_ZH = re.compile("十分|千萬別|千万别|萬一|万一|百分|半天")

_NEGATIONS = """not no never none nobody nothing nowhere neither nor without cannot
cant wont dont doesnt isnt arent"""
NEGATIONS = frozenset(_NEGATIONS.split())
NEGATION_ZH = re.compile("[不沒没無无非未勿]|別(?!的|人)|别(?!的|人)")
NO_NEGATION_ZH = re.compile(
    r"(.)[不沒没]\1|有沒有|有没有|差不多|不過|不过|不錯|不错|不管|非常|無論|无论|未來|未来"
    "|[特類类區区分級级個个性]別|[特類类區区分级級个個性]别"
)
"""A-not-A questions, and words in which the character negates nothing."""

_OPPOSITES = """
increase/decrease increase/reduce raise/lower more/less more/fewer most/least higher/lower high/low large/small
larger/smaller big/small longer/shorter long/short faster/slower fast/slow hot/cold cheap/expensive cheaper/dearer
best/worst better/worse good/bad maximum/minimum max/min first/last before/after above/below over/under left/right
up/down on/off upload/download import/export input/output open/close start/stop begin/end enable/disable allow/forbid
install/uninstall add/remove buy/sell buy/rent lend/borrow push/pull encrypt/decrypt encode/decode accept/reject
compress/decompress advantage/disadvantage advantages/disadvantages pros/cons safe/dangerous legal/illegal
possible/impossible active/passive positive/negative inside/outside win/lose gain/lose male/female strong/weak
light/dark wet/dry old/new public/private online/offline server/client with/without
"""
_OPPOSITES_ZH = """
增加/減少 增加/减少 提高/降低 最大/最小 最多/最少 最高/最低 最好/最差 最快/最慢 上升/下降 開啟/關閉 打开/关闭 開始/停止
开始/停止 啟用/停用 启用/停用 安裝/移除 安装/卸载 上傳/下載 上传/下载 加密/解密 壓縮/解壓 压缩/解压 優點/缺點 优点/缺点
買/賣 买/卖 租/買 租/买 大/小 多/少 高/低 快/慢 長/短 长/短 貴/便宜 贵/便宜 冷/熱 冷/热 左/右 上/下 前/後 前/后
安全/危險 安全/危险 可以/禁止 公開/私有 公开/私有 輸入/輸出 输入/输出
"""
ANTONYMS = _pairs(_OPPOSITES) + _pairs(_OPPOSITES_ZH)
OPPOSED = frozenset(term for pair in _pairs(_OPPOSITES) for term in pair)
OPPOSED_ZH = frozenset(term for pair in _pairs(_OPPOSITES_ZH) for term in pair)
"""The terms of the pairs, by language."""

DIRECTIONS = frozenset(["from", "to", "than", "into", "before", "after", "over", "versus", "vs"])
"""Words that make the order of the others matter: from A to B."""
