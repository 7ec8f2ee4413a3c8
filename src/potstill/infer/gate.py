"""May a question be answered from a cache at all? Pure; English and Chinese.

What asks for personal state, for the present moment, for an action, or leans on an earlier turn has no answer that holds
for the next asker. The word lists are short and will miss cases: they lower the rate of wrong hits, they do not end it.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Gate(NamedTuple):
    """Whether a question may be served from and stored in the cache, and why not."""

    cacheable: bool
    reason: str


_OWN = (
    "accounts?|balance|bills?|calendar|appointments?|orders?|packages?|passwords?|salary|emails?|inbox|messages?|"
    "subscription|address|location|flights?|bookings?|reservations?|payments?|invoices?|schedule|to-?do list"
)
_OWN_ZH = (
    "帳戶|账户|帳號|账号|訂單|订单|餘額|余额|密碼|密码|帳單|账单|預約|预约|包裹|信用卡|薪水|薪資|薪资|郵件|邮件|"
    "行程|航班|位置|地址|訊息|消息"
)
_ACT = (
    "book|send|play|remind|email|text|cancel|delete|transfer|pay|schedule|"
    "(?:set|start|stop) (?:an?|the|my) (?:alarm|timer|reminder)|turn (?:on|off)|(?:switch|shut) (?:on|off|down)"
)
_ACT_ZH = (
    "訂|订|預訂|预订|寄|發送|发送|播放|提醒|打電話|打电话|取消|刪除|删除|轉帳|转账|付款|設定?鬧鐘|设置?闹钟|"
    "關掉|关掉|關閉|关闭|打開|打开"
)

RULES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "time",
        re.compile(
            r"\b(?:today|tonight|tomorrow|yesterday|now|currently|latest|newest|recent(?:ly)?|nowadays"
            r"|(?:this|next|last) (?:week|month|year|morning|evening)"
            r"|current (?:price|version|time|date|weather|status|rate|news|president|situation)|what time|so far)\b"
            r"|今天|今日|今晚|明天|昨天|現在|现在|目前|當前|当前|最新|最近|剛才|刚才|此刻|今年|去年|明年"
            r"|(?:這|这|本|上|下)(?:個|个)?(?:週|周|月|星期)|幾點|几点",
            re.IGNORECASE,
        ),
    ),
    (
        "personal",
        re.compile(
            rf"\b(?:my|our) (?:\w+ )?(?:{_OWN})\b|\b(?:where|who) am i\b|\bdo i (?:owe|have any)\b"
            rf"|(?:我|我們|我们)的?(?:{_OWN_ZH})|我在哪|我是誰|我是谁|我欠",
            re.IGNORECASE,
        ),
    ),
    (
        "action",
        re.compile(
            rf"^(?:(?:please|kindly|can you|could you|would you) )*(?:{_ACT})\b"
            rf"|^(?:請|请)?(?:(?:幫|帮|替|給|给)我)?(?:{_ACT_ZH})",
            re.IGNORECASE,
        ),
    ),
    (
        "follow-up",
        re.compile(
            r"^(?:and|but|then|what about|how about)\b|^(?:why|how|how come|really|which one|for example)\W*$"
            r"|^(?:what|how|why) (?:is|does|about|are|do) (?:it|that|this|they|those)\W*$"
            r"|^(?:那|還有|还有|它|他|她|這|这)(?:麼|么|個|个)?.{0,6}呢|^(?:為什麼|为什么|怎麼說|怎么说|例如)\W*$",
            re.IGNORECASE,
        ),
    ),
)


def cacheability(question: str, *, has_history: bool = False) -> Gate:
    """Decide whether a question may be answered from the cache; `has_history` where earlier turns come with it."""
    if has_history:
        return Gate(cacheable=False, reason="history: earlier turns are part of the question")
    for name, pattern in RULES:
        if (found := pattern.search(question.strip())) is not None:
            return Gate(cacheable=False, reason=f"{name}: {found.group(0)!r}")
    return Gate(cacheable=True, reason="")
