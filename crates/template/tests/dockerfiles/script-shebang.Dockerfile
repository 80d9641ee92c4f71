FROM perl:5
RUN <<'EOF'
#!/usr/bin/env perl
use strict;
open(my $file, '>', '/made') or die;
print $file "by perl $^V\n";
EOF
