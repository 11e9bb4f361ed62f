filedesc://a.arc 0.0.0.0 20080521031200 text/plain 122
2 0 InternetArchive
URL IP-address Archive-date Content-type Result-code Checksum Location Offset Filename Archive-length

http://x/ 192.0.2.7 20080521031200 text/html 200 1B2M2Y8AsgTpgAmY7PhCfg== - 1234 a.arc.gz 70
HTTP/1.1 200 OK
Content-Type: text/html

<p>hi<img src=a.png alt=A>
