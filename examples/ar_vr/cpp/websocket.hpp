// A WebSocket client (RFC 6455) over POSIX sockets: one header, no library. What the server sends is not trusted:
// every length is checked before memory is taken for it, and everything ends in bounded time.
//
// No TLS: see README.md. One thread receives; any thread may send.
#pragma once

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cctype>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace t2v {

using Clock = std::chrono::steady_clock;
using Bytes = std::vector<std::uint8_t>;
inline constexpr std::chrono::seconds kGrace{1};  // for a message that is on its way when the time is up

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline Clock::time_point after(double seconds) {
    return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

// SHA-1 (RFC 3174), which the handshake is checked with; it keeps no secret.
inline std::array<std::uint8_t, 20> sha1(std::string_view text) {
    std::array<std::uint32_t, 5> h{0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    std::string data(text);
    data.push_back('\x80');
    while (data.size() % 64 != 56) data.push_back('\0');
    for (int shift = 56; shift >= 0; shift -= 8) {
        data.push_back(static_cast<char>((static_cast<std::uint64_t>(text.size()) * 8) >> shift));
    }
    const auto turn = [](std::uint32_t x, int n) { return (x << n) | (x >> (32 - n)); };
    for (std::size_t block = 0; block < data.size(); block += 64) {
        std::array<std::uint32_t, 80> w{};
        for (std::size_t i = 0; i < 80; ++i) {
            if (i < 16) {
                for (std::size_t j = 0; j < 4; ++j) {
                    w[i] = w[i] << 8 | static_cast<std::uint8_t>(data[block + 4 * i + j]);
                }
            } else {
                w[i] = turn(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
            }
        }
        auto [a, b, c, d, e] = h;
        for (std::size_t i = 0; i < 80; ++i) {
            const std::uint32_t f = i < 20             ? (b & c) | (~b & d)
                                    : i < 40 || i >= 60 ? b ^ c ^ d
                                                        : (b & c) | (b & d) | (c & d);
            const std::uint32_t k = i < 20 ? 0x5A827999 : i < 40 ? 0x6ED9EBA1 : i < 60 ? 0x8F1BBCDC : 0xCA62C1D6;
            const std::uint32_t next = turn(a, 5) + f + e + k + w[i];
            e = d, d = c, c = turn(b, 30), b = a, a = next;
        }
        h = {h[0] + a, h[1] + b, h[2] + c, h[3] + d, h[4] + e};
    }
    std::array<std::uint8_t, 20> digest{};
    for (std::size_t i = 0; i < 20; ++i) digest[i] = static_cast<std::uint8_t>(h[i / 4] >> (24 - 8 * (i % 4)));
    return digest;
}

template <class Range>
std::string base64(const Range& bytes) {
    static constexpr char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string text;
    std::uint32_t value = 0;
    int bits = 0;
    for (const std::uint8_t byte : bytes) {
        value = value << 8 | byte;
        for (bits += 8; bits >= 6;) text.push_back(letters[value >> (bits -= 6) & 63]);
    }
    if (bits > 0) text.push_back(letters[value << (6 - bits) & 63]);
    while (text.size() % 4 != 0) text.push_back('=');
    return text;
}

inline bool is_utf8(const Bytes& text) {
    for (std::size_t i = 0; i < text.size();) {
        const std::uint8_t lead = text[i];
        if ((lead >= 0x80 && lead < 0xC2) || lead > 0xF4) return false;
        const std::size_t more = lead < 0x80 ? 0 : lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
        if (i + more >= text.size()) return false;
        std::uint32_t point = more == 0 ? lead : lead & (0x3Fu >> more);
        for (std::size_t j = 1; j <= more; ++j) {
            if ((text[i + j] & 0xC0) != 0x80) return false;
            point = point << 6 | (text[i + j] & 0x3F);
        }
        static constexpr std::uint32_t least[] = {0, 0x80, 0x800, 0x10000};
        if (point < least[more] || point > 0x10FFFF || (point >= 0xD800 && point < 0xE000)) return false;
        i += more + 1;
    }
    return true;
}

struct Message {
    bool text = false;
    Bytes data;
};

struct Address {
    std::string host, port, path;

    // Of ws://HOST:PORT/PATH; an IPv6 address stands in brackets.
    static Address of(const std::string& url) {
        if (url.rfind("ws://", 0) != 0) throw Error("'" + url + "' is no ws:// address; for wss see README.md");
        std::string rest = url.substr(5);
        const std::size_t slash = rest.find('/');
        Address found{{}, "80", slash == std::string::npos ? "/" : rest.substr(slash)};
        rest = rest.substr(0, slash);
        const std::size_t colon = rest.rfind(':');
        if (colon != std::string::npos && rest.find(']', colon) == std::string::npos) {
            found.port = rest.substr(colon + 1);
            rest.resize(colon);
        }
        found.host = rest;
        if (rest.empty()) throw Error("'" + url + "' names no host; write ws://HOST:PORT/live");
        for (const char c : found.host + found.port + found.path) {
            if (c <= ' ' || c == 0x7f) throw Error("the address has a space or a control character; escape it");
        }
        return found;
    }
};

class WebSocket {
  public:
    // most_bytes, most_text: of one binary message, and of one text. silence_s: how long the server, which sends pings,
    // may say nothing at all.
    WebSocket(std::size_t most_bytes, std::size_t most_text, double silence_s = 45)
        : most_bytes_(most_bytes), most_text_(most_text), silence_s_(silence_s) {}
    ~WebSocket() {
        if (fd_ >= 0) ::close(fd_);
    }

    // Connect and shake hands; token: sent as Authorization, where it is not empty.
    void connect(const std::string& url, const std::string& token = {}, double timeout_s = 10) {
        const Address address = Address::of(url);
        for (const char c : token) {
            if (c <= ' ' || c >= 0x7f) throw Error("the token must be ASCII without spaces");
        }
        const Clock::time_point until = after(timeout_s);
        open(address, until);
        std::array<std::uint8_t, 16> nonce{};
        for (std::uint8_t& byte : nonce) byte = static_cast<std::uint8_t>(random_());
        const std::string key = base64(nonce);
        std::string request = "GET " + address.path + " HTTP/1.1\r\nHost: " + address.host + ":" + address.port +
                              "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                              "Sec-WebSocket-Key: " + key + "\r\n";
        if (!token.empty()) request += "Authorization: Bearer " + token + "\r\n";
        request += "\r\n";
        write_all(reinterpret_cast<const std::uint8_t*>(request.data()), request.size(), until);
        check_answer(read_head(until), base64(sha1(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")));
        heard_ = Clock::now();
    }

    // The next message; nothing where none is complete in time. Throws Error where the connection is lost or ended.
    std::optional<Message> receive(double timeout_s) {
        const Clock::time_point until = after(timeout_s);
        while (true) {
            if (std::optional<Message> message = assemble()) return message;
            if (!fill(until)) {
                if (Clock::now() - heard_ > std::chrono::duration<double>(silence_s_)) {
                    throw Error("the server says nothing any more; connect again");
                }
                return std::nullopt;
            }
            if (Clock::now() > until + kGrace) return std::nullopt;  // pings without end are no message
        }
    }

    void send(std::string_view text, double timeout_s = 10) {
        send_frame(0x1, reinterpret_cast<const std::uint8_t*>(text.data()), text.size(), after(timeout_s));
    }

    // Say goodbye, and wait a moment for the server to do so.
    void close(double timeout_s = 1) noexcept {
        if (fd_ < 0) return;
        try {
            const std::uint8_t code[] = {1000 >> 8, 1000 & 0xff};
            send_frame(0x8, code, sizeof code, after(timeout_s));
            for (const Clock::time_point until = after(timeout_s); Clock::now() < until;) receive(0.05);
        } catch (const std::exception&) {  // it is closed
        }
        ::close(fd_);
        fd_ = -1;
    }

  private:
    void open(const Address& address, Clock::time_point until) {
        addrinfo hints{};
        hints.ai_socktype = SOCK_STREAM;
        addrinfo* found = nullptr;
        const bool bare = address.host[0] != '[';
        const std::string host = bare ? address.host : address.host.substr(1, address.host.size() - 2);
        if (const int wrong = getaddrinfo(host.c_str(), address.port.c_str(), &hints, &found); wrong != 0) {
            throw Error("cannot find " + address.host + ": " + gai_strerror(wrong));
        }
        std::string why = "no address";
        for (const addrinfo* one = found; one != nullptr && fd_ < 0; one = one->ai_next) {
            fd_ = ::socket(one->ai_family, one->ai_socktype, one->ai_protocol);
            if (fd_ < 0) continue;
            ::fcntl(fd_, F_SETFL, ::fcntl(fd_, F_GETFL) | O_NONBLOCK);
            int failed = ::connect(fd_, one->ai_addr, one->ai_addrlen) == 0 ? 0 : errno;
            if (failed == EINPROGRESS) {
                socklen_t size = sizeof failed;
                if (!wait(POLLOUT, until)) failed = ETIMEDOUT;
                else ::getsockopt(fd_, SOL_SOCKET, SO_ERROR, &failed, &size);
            }
            if (failed != 0) {
                why = std::strerror(failed);
                ::close(fd_);
                fd_ = -1;
            }
        }
        freeaddrinfo(found);
        if (fd_ < 0) throw Error("cannot connect to " + address.host + ":" + address.port + ": " + why);
        const int on = 1;
        ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }

    std::string read_head(Clock::time_point until) {
        while (true) {
            const std::string_view seen(reinterpret_cast<const char*>(in_.data()), in_.size());
            if (const std::size_t end = seen.find("\r\n\r\n"); end != std::string_view::npos) {
                std::string head(seen.substr(0, end + 2));
                in_.erase(in_.begin(), in_.begin() + static_cast<std::ptrdiff_t>(end + 4));
                return head;
            }
            if (in_.size() > 16384) throw Error("the answer's head is too long; is this the live server's address?");
            if (!fill(until)) throw Error("the server does not answer; is this the live server's address?");
        }
    }

    static void check_answer(const std::string& head, const std::string& accept) {
        const std::string line = head.substr(0, head.find("\r\n"));
        if (line.rfind("HTTP/1.1 101 ", 0) != 0) throw Error("the server refused: " + line.substr(0, 80));
        for (std::size_t at = line.size() + 2; at < head.size();) {
            const std::size_t end = head.find("\r\n", at);
            const std::size_t colon = head.find(':', at);
            std::string name = head.substr(at, colon < end ? colon - at : 0);
            for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
            if (name == "sec-websocket-accept") {
                const std::size_t from = head.find_first_not_of(" \t", colon + 1);
                if (head.compare(from, end - from, accept) == 0) return;
            }
            at = end + 2;
        }
        throw Error("the server did not accept the handshake; is this the live server's address?");
    }

    // One whole message of what has arrived, answering pings on the way.
    std::optional<Message> assemble() {
        while (true) {
            const std::uint8_t* p = in_.data() + at_;
            const std::size_t here = in_.size() - at_;
            if (here < 2) return std::nullopt;
            const std::size_t extra = (p[1] & 0x7f) == 126 ? 2 : (p[1] & 0x7f) == 127 ? 8 : 0;
            const int opcode = p[0] & 0x0f;
            if ((p[0] & 0x70) != 0 || (p[1] & 0x80) != 0) throw Error("the server breaks the protocol (bits)");
            if (here < 2 + extra) return std::nullopt;
            std::uint64_t size = p[1] & 0x7f;
            if (extra > 0) size = 0;
            for (std::size_t i = 0; i < extra; ++i) size = size << 8 | p[2 + i];
            check_frame(opcode, (p[0] & 0x80) != 0, size);
            if (here - 2 - extra < size) return std::nullopt;
            const std::uint8_t* data = p + 2 + extra;
            const bool last = (p[0] & 0x80) != 0;
            at_ += 2 + extra + static_cast<std::size_t>(size);
            if (opcode >= 0x8) {
                control(opcode, data, static_cast<std::size_t>(size));
                continue;
            }
            if (opcode != 0) message_.text = opcode == 0x1;
            message_.data.insert(message_.data.end(), data, data + size);
            open_message_ = !last;
            if (last) {
                if (message_.text && !is_utf8(message_.data)) throw Error("the server sent text that is not UTF-8");
                return std::exchange(message_, Message{});
            }
        }
    }

    // Refuses by the header alone: a length that lies costs no memory.
    void check_frame(int opcode, bool last, std::uint64_t size) const {
        if (opcode >= 0x8) {
            if (opcode > 0xA || !last || size > 125) throw Error("the server breaks the protocol (control frame)");
        } else if (opcode > 0x2 || (opcode == 0) != open_message_) {
            throw Error("the server breaks the protocol (fragments)");
        } else {
            const bool text = opcode == 0x1 || (opcode == 0 && message_.text);
            const std::size_t most = text ? most_text_ : most_bytes_;
            if (size > most - message_.data.size()) {
                throw Error("the server sent more than " + std::to_string(most) + " bytes at once");
            }
        }
    }

    void control(int opcode, const std::uint8_t* data, std::size_t size) {
        if (opcode == 0x9) send_frame(0xA, data, size, after(10));
        if (opcode != 0x8) return;
        std::string why(reinterpret_cast<const char*>(data) + (size < 2 ? 0 : 2), size < 2 ? 0 : size - 2);
        const int code = size < 2 ? 1005 : data[0] << 8 | data[1];
        try {
            send_frame(0x8, data, size < 2 ? 0 : 2, after(1));
        } catch (const Error&) {  // it is closed already
        }
        throw Error("the server closed the connection: " + std::to_string(code) + " " + why);
    }

    // More bytes; false where none come in time.
    bool fill(Clock::time_point until) {
        if (fd_ < 0) throw Error("not connected");
        if (at_ > 0) {
            in_.erase(in_.begin(), in_.begin() + static_cast<std::ptrdiff_t>(at_));
            at_ = 0;
        }
        std::array<std::uint8_t, 65536> part;
        while (true) {
            const ssize_t count = ::recv(fd_, part.data(), part.size(), 0);
            if (count > 0) {
                in_.insert(in_.end(), part.begin(), part.begin() + count);
                heard_ = Clock::now();
                return true;
            }
            if (count == 0) throw Error("the connection is lost");
            if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) throw Error(std::strerror(errno));
            if (!wait(POLLIN, until)) return false;
        }
    }

    void send_frame(std::uint8_t opcode, const std::uint8_t* data, std::size_t size, Clock::time_point until) {
        const std::lock_guard<std::mutex> lock(sending_);
        Bytes out{static_cast<std::uint8_t>(0x80 | opcode)};
        const int bytes = size < 126 ? 0 : size < 65536 ? 2 : 8;
        out.push_back(static_cast<std::uint8_t>(0x80 | (bytes == 0 ? size : bytes == 2 ? 126 : 127)));
        const std::uint64_t length = size;
        for (int i = bytes - 1; i >= 0; --i) out.push_back(static_cast<std::uint8_t>(length >> 8 * i));
        std::array<std::uint8_t, 4> mask{};
        for (std::uint8_t& byte : mask) byte = static_cast<std::uint8_t>(random_());
        out.insert(out.end(), mask.begin(), mask.end());
        for (std::size_t i = 0; i < size; ++i) out.push_back(data[i] ^ mask[i % 4]);
        write_all(out.data(), out.size(), until);
    }

    void write_all(const std::uint8_t* data, std::size_t size, Clock::time_point until) {
        if (fd_ < 0) throw Error("not connected");
        while (size > 0) {
#ifdef MSG_NOSIGNAL
            const ssize_t count = ::send(fd_, data, size, MSG_NOSIGNAL);
#else
            const ssize_t count = ::send(fd_, data, size, 0);  // on macOS ignore SIGPIPE in your program
#endif
            if (count >= 0) {
                data += count;
                size -= static_cast<std::size_t>(count);
            } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
                if (!wait(POLLOUT, until)) throw Error("the server takes nothing any more");
            } else if (errno != EINTR) {
                throw Error(std::string("the connection is lost: ") + std::strerror(errno));
            }
        }
    }

    bool wait(short events, Clock::time_point until) const {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
        pollfd one{fd_, events, 0};
        return left > 0 && ::poll(&one, 1, static_cast<int>(std::min<long long>(left, 1000000))) > 0;
    }

    const std::size_t most_bytes_, most_text_;
    const double silence_s_;
    int fd_ = -1;
    Bytes in_;
    std::size_t at_ = 0;  // how much of in_ has been read
    Message message_;
    bool open_message_ = false;  // whether the next frame must go on with message_
    Clock::time_point heard_{};
    std::mutex sending_;
    std::random_device random_;
};

}  // namespace t2v
