filedesc://a.arc 0.0.0.0 20080521031200 text/plain 76
1 0 InternetArchive
URL IP-address Archive-date Content-type Archive-length

http://x/ 1.2.3.4 20080521031200 text/html 99999999999999999
<p>hi<img src=a.png alt=A>