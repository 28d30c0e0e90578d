"""Words of receipts and addresses, Malaysian ones among them, written down from general knowledge."""


def _split(text: str, mark: str = "|") -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(mark))


LABELS = _split(
    "Total|Sub Total|Subtotal|Grand Total|Net Total|Total Amount|Amount|Amount Due|Balance|Cash|Change|Change Due|Rounding|"
    "Rounding Adj|Round Adj|Tax|GST|GST 6%|GST @ 6%|SST|Service Tax|Service Charge|Discount|Disc|Qty|Quantity|Total Qty|"
    "Item|Items|Item Count|No of Items|Price|Unit Price|Tel|Fax|Phone|Date|Time|Invoice No|Inv No|Receipt No|Rcpt|Bill No|"
    "Doc No|Ref No|Trans No|Order No|Table|Table No|Cashier|Counter|Station|Terminal|Terminal ID|Merchant ID|Till|Register|"
    "Shift|Staff|Served by|Salesperson|Sales|Member|Member No|Card No|Approval Code|App Code|Batch No|Trace No|Points|"
    "Voucher|Deposit|Paid|Payment|Tender|Tendered|Cash Received|Visa|Master|Credit Card|Debit|Taxable|Non Taxable|"
    "Zero Rated|Excl GST|Incl GST|Total Incl GST|Total Excl GST|Total Sales|Net|Gross|Pax|Guest|Customer|Attn|"
    "Company Reg No|Reg No|GST No|GST ID|GST Reg No|Co No|Roc No|Code|Barcode|Page|Term|Terms|Due Date|Description|Remark|"
    "Remarks|No|ID|User|Outlet|Store|Branch|Pump|Litre|Weight|Net Wt|Saving|You Saved|Email|Web|Website|SR|ZR|Ref|Uom|Amt|"
    "Amt(RM)|RM|Total RM|Total (RM)|Total(MYR)|Version|Printed|Entry Mode|Type"
)
PHRASES = _split(
    "Thank you|Thank you!|Thank you, please come again|Please come again|Tax Invoice|Simplified Tax Invoice|Receipt|"
    "Official Receipt|Cash Bill|Cash Sales|Cash|Change|Invoice|Original|Copy|Customer Copy|Merchant Copy|Duplicate|Reprint|"
    "Terima Kasih|Sila Datang Lagi|Selamat Datang|Welcome|Have a nice day|Goods sold are not|returnable|refundable|"
    "Goods sold are not refundable|No refund|No exchange|Exchange within 7 days|Please keep this receipt|"
    "Keep receipt for exchange|Total incl. of GST|GST Summary|Tax Summary|Tax Code|Tax(RM)|Amount(RM)|Amt (RM)|Price (RM)|"
    "Rounding Adjustment|Closed|Item(s)|Qty(s)|Take Away|Dine In|Eat In|Walk In|Description|Item Description|Self Collect|"
    "Powered by|Follow us on|Opening hours|Signature|No signature required|Approved|Declined|Verified by PIN|Pin verified|"
    "Chip card|Contactless|Cash Tendered|Total Rounded|Member Points|Points Earned|Customer Service|Careline|Sdn Bhd|"
    "Sdn. Bhd.|(M) Sdn Bhd|Sdn Bhd (Co. No.)|Bhd|Enterprise|Trading|Restoran|Kedai Makan|Pasar Mini|Kopitiam|Perniagaan|"
    "Pasaraya|Syarikat|Hardware|Stationery|Bookstore|Pharmacy|Farmasi|All prices include GST|Inclusive of GST|"
    "Exclusive of GST|6% GST|GST 6%|SR @ 6%|* SR = 6%|ZRL|S = Standard Rate|Z = Zero Rate|Non-Halal|Halal|Bank transfer|"
    "Net Amount|Buy 1 Free 1|Promotion|Member Price|Normal Price|Special Offer|Less Discount|-- END --|*** COPY ***|"
    "E. & O. E.|E.&O.E|Received by|Authorised Signature|Issued by|Sold to|Bill to|Deliver to|Cash & Carry|Subject to terms|"
    "Terms & Conditions|Please check your change|Your feedback matters|Scan here|Valid until|Not valid|Refund|Void"
)
RETAIL_WORDS = _split(
    "Milk|Bread|Rice|Sugar|Salt|Flour|Egg|Eggs|Butter|Cheese|Yogurt|Chicken|Beef|Fish|Prawn|Squid|Noodle|Mee|Nasi|Goreng|"
    "Lemak|Ayam|Ikan|Sayur|Kangkung|Tauhu|Tofu|Soup|Sup|Roti|Canai|Teh|Tarik|Kopi|Ice|Ais|Kosong|Limau|Milo|Coffee|Latte|"
    "Tea|Juice|Orange|Apple|Banana|Mango|Papaya|Coke|Cola|Water|Mineral|Beer|Soda|Biscuit|Cookie|Cake|Chocolate|Candy|"
    "Snack|Chips|Nuts|Oil|Sauce|Kicap|Chili|Garlic|Onion|Ginger|Potato|Tomato|Carrot|Cabbage|Set|Combo|Meal|Large|Medium|"
    "Small|Regular|Hot|Cold|Fried|Grilled|Spicy|Sweet|Fresh|Frozen|Pack|Packet|Bottle|Can|Box|Bag|Roll|Tissue|Soap|Shampoo|"
    "Brush|Paste|Towel|Tape|Paper|A4|Pen|Pencil|Marker|Book|File|Folder|Glue|Clip|Ink|Cartridge|Battery|Bulb|Cable|Plug|"
    "Socket|Switch|Wire|Pipe|Valve|Screw|Nut|Bolt|Nail|Hook|Hinge|Lock|Key|Paint|Thinner|Cement|Sand|Brick|Tile|Wood|"
    "Plywood|Steel|PVC|Hose|Pump|Filter|Petrol|Diesel|RON95|Parking|Toll|Ticket|Adult|Child|Shirt|Pants|Socks|Shoes|Dress|"
    "Toy|Gift|Card|Phone|Charger|Mouse|USB|LED|White|Black|Red|Blue|Green|Yellow|Silver|Gold|Plastic|Glass|Cup|Plate|Bowl|"
    "Spoon|Fork|Knife|Mask|Glove|Vitamin|Tablet|Syrup|Cream|Lotion|Powder|Baby|Diaper|Wipes|Hand|Face|Body|Hair|Delivery|"
    "Labour|Service|Repair|Install|Rental|Monthly|Fee|Misc|Others|Special|Premium|Original|Extra|Mini|Super|Jumbo|Duplo|"
    "Refill"
)
UNITS = _split(
    "G|GM|KG|ML|L|LTR|PCS|PC|PKT|X|S|'S|CM|MM|M|FT|IN|INCH|\"|BTL|BOX|SET|UNIT|UNITS|CTN|DOZ|W|V|MAH|GB|PX|%|OZ|LB|PAX"
)
ABBREVIATIONS = _split(
    "RM|S|M|L|MYR|6%|GST|KG|PCS|SR|ZRL|NOS|INCL|EXCL|A|B|1|2|CO. NO|HQ|TA|DINE IN|COLD|HOT|BIG|HALAL|SST|USD|0%|NEW"
)
PLACES = _split(
    "Kuala Lumpur|Selangor|Petaling Jaya|Shah Alam|Klang|Subang Jaya|Puchong|Kajang|Cheras|Ampang|Gombak|Rawang|Kepong|"
    "Sungai Buloh|Seri Kembangan|Serdang|Bangi|Cyberjaya|Putrajaya|Sepang|Johor|Johor Bahru|Batu Pahat|Muar|Kluang|Skudai|"
    "Kulai|Segamat|Melaka|Negeri Sembilan|Seremban|Nilai|Port Dickson|Perak|Ipoh|Taiping|Teluk Intan|Sitiawan|Kampar|"
    "Pulau Pinang|Penang|Butterworth|Bukit Mertajam|Bayan Lepas|Kedah|Alor Setar|Sungai Petani|Kulim|Langkawi|Perlis|"
    "Kangar|Kelantan|Kota Bharu|Terengganu|Kuala Terengganu|Pahang|Kuantan|Temerloh|Bentong|Sabah|Kota Kinabalu|Sandakan|"
    "Tawau|Sarawak|Kuching|Sibu|Miri|Bintulu|Labuan|Malaysia|Singapore|W.P. Kuala Lumpur|Selangor D.E.|"
    "Selangor Darul Ehsan|Johor Darul Takzim|Damansara|Bandar Sunway|Setapak|Wangsa Maju|Sri Petaling|Bukit Jalil|"
    "Old Klang Road|Batu Caves|Semenyih|Setia Alam|Kota Damansara|Mont Kiara|Bangsar|Sentul"
)
STREET_WORDS = _split(
    "Jalan|Jalan|Jalan|Jln|JLN.|Taman|Taman|Tmn|Lorong|Bandar|Bandar Baru|Persiaran|Lebuh|Lebuhraya|Kampung|Kg.|Seksyen|"
    "Section|Desa|Bukit|Medan|Kawasan Perindustrian|Pusat Perdagangan|Block|Blok|Lot|Level|Unit|Ground Floor,|Wisma|Menara|"
    "Plaza|Kompleks|Seri|Street|Road|Avenue|Lot G"
)
COMPANY_WORDS = _split(
    "Sdn Bhd|Sdn. Bhd.|SDN BHD|(M) Sdn Bhd|Enterprise|Trading|Restaurant|Restoran|Cafe|Bakery|Mart|Mini Market|Hardware|"
    "Book Store|Hypermarket|Stationery|Holdings|& Sons|Brothers|Co.|Berhad|Industries|Marketing|Services|Electrical|"
    "Furniture|Motor|Pharmacy|Optical|Tailor|Group"
)
FIRST_NAMES = _split(
    "Ahmad|Ali|Siti|Nur|Muhammad|Aminah|Razak|Ismail|Hassan|Fatimah|Azman|Farah|Zul|Tan|Lim|Lee|Wong|Ng|Chan|Chong|Ong|Teo|"
    "Yap|Goh|Koh|Chin|Wei|Ming|Hui|Mei|Ah Kau|Raj|Kumar|Muthu|Devi|Priya|Siva|Anand|Gopal|John|Mary|Peter|David|Sarah|"
    "Michael|Anna|James|Linda|Robert"
)
# `#` stands for a digit, `@` for a capital letter.
CODE_PATTERNS = _split(
    "######-@, (######-@), (####@-@), ############, #### #### ####, @#######-@, @@#########, @@-#####, #####, ########, "
    "#############, @@@####, @#-##-###, ##@@##, ###-###-###, @@@-######, #/##, #-####-####, CS########, INV#######, "
    "INV-####, BILL ####, GST############, POS##, #######-#, XXXX####, XXXX-XXXX-####, ****####, **** ****, "
    "############ #, 00000####, 000000#, T##, @##, #@, (######@), SR#%, #####@, @@@@@####, V#.#.##, [##], <##>, #:####, "
    "@#@#@#, @@/####/##, #.#, #_####, @@_##, AAA####, ####+####, @#;@#, {##}, #~##, ##\\##, @|#, ^##, `#`",
    mark=", ",
)
