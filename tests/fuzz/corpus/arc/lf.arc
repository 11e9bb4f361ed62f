filedesc://a.arc 0.0.0.0 20080521031200 text/plain 76
1 0 InternetArchive
URL IP-address Archive-date Content-type Archive-length

http://x/ 192.0.2.7 20080521031200 text/html 64
HTTP/1.0 200
Content-type: text/html

<p>hi<img src=a.png alt=A>
