"""Text that would run in a browser if it were not shown as text."""

HOSTILE = "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">&amp;"
