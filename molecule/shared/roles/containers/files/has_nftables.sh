#!/bin/sh
# Says whether this host's kernel, which the containers share, can bound connections: `yes`, or `no` and nft's reason.
# Usage: has_nftables.sh (as root)
if said=$(unshare --net nft --check --file - 2>&1 <<'RULES'
table inet probe {
    ct timeout short {
        protocol tcp
        l3proto ip
        policy = { syn_recv: 3 }
    }
    set addresses { type ipv4_addr; size 65535; flags dynamic; }
    chain input {
        type filter hook input priority filter;
        ct state new ct timeout set "short" add @addresses { ip saddr ct count over 1 } log reject with tcp reset
    }
}
RULES
); then
    echo yes
else
    echo "no: $said"
fi
