"""Hard texts, on which every tokenizer taken over and every export is proven, besides the caller's."""

from __future__ import annotations

from megatron_codemix.tokenizer.symbols import BEGIN_OF_TEXT, END_OF_TEXT, PAD, SPACE, UNKNOWN

PROOF_TEXTS: tuple[str, ...] = (
    "def f(x):\n    return x  # comment\n\n\n\tif x:\r\n\t\tpass",
    " leading and trailing  ",
    "".join(f"a{' ' * length}b" for length in range(1, 40)),
    "\n\n\n\n\n  \n \t\t\t\t\t\r\r\n",
    "日本語 ñ é a\u0301 ﬁ Å ½ 🎉🎉 \u00a0\u2003\ufeff \x01",
    f"{SPACE}literal{SPACE}{SPACE}under x{SPACE} y {SPACE}",
    "<0x41> <0x0A> 12345 3.14e-10 AAAAAAAAAAAAAAAAAAAAAAA ------------ =================== I'LL don't",
    f"spelled {END_OF_TEXT}{PAD} {UNKNOWN}<mask> <|user|>\n<fim_prefix>{BEGIN_OF_TEXT} </s><s><|im_end|>",
    "".join(chr(number) for number in range(0x250)),
)
